"use strict";
// The theme, the figures as they scroll into view, and the tables of trials. Text of the data is set as text alone.
(() => {
  const root = document.documentElement;
  const REMEMBERED = "grcf-report-theme";
  const AT_FIRST = 100;
  // Plotly would offer to send a figure to a server.
  const CONFIG = {
    responsive: true,
    displaylogo: false,
    showSendToCloud: false,
    plotlyServerURL: "",
    modeBarButtonsToRemove: ["select2d", "lasso2d"],
  };
  const axis = (line, grid) => ({gridcolor: grid, zerolinecolor: grid, linecolor: line, tickcolor: line, automargin: true});
  const template = (page, ink, line, grid) => ({
    layout: {
      paper_bgcolor: page,
      plot_bgcolor: page,
      font: {color: ink, family: "system-ui, sans-serif", size: 13},
      xaxis: axis(line, grid),
      yaxis: axis(line, grid),
      hoverlabel: {bgcolor: page, bordercolor: line, font: {color: ink}},
      modebar: {bgcolor: "rgba(0,0,0,0)", color: line, activecolor: ink},
      margin: {l: 56, r: 16, t: 32, b: 48},
    },
  });
  const templates = {
    light: template("#ffffff", "#1a1d21", "#545d66", "#dfe4e9"),
    dark: template("#111111", "#e8eaed", "#a9b2bb", "#33393f"),
  };

  // A browser may keep no storage for files.
  const remembered = () => {
    try {
      return localStorage.getItem(REMEMBERED);
    } catch {
      return null;
    }
  };
  const remember = (theme) => {
    try {
      localStorage.setItem(REMEMBERED, theme);
    } catch {
      // The theme then lasts for as long as the page is open.
    }
  };
  const system = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => {
    const kept = remembered();
    return kept in templates ? kept : system.matches ? "dark" : "light";
  };
  const plots = () => [...document.querySelectorAll(".plot")];
  const drawings = new Map();
  const wear = (theme) => {
    root.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) button.setAttribute("aria-pressed", String(theme === "dark"));
    return Promise.all(
      [...drawings].map(([plot, drawing]) => drawing.then(
        (drawn) => drawn && Plotly.relayout(plot, {template: templates[theme]}),
        () => null
      ))
    );
  };
  wear(chosen());

  // Returns whether there is a drawing: parallel axes are drawn by WebGL alone, and their data stand in a table below.
  const begin = async (plot) => {
    const written = plot.parentElement.querySelector("script[data-figure]").textContent;
    const figure = JSON.parse(written);
    const layout = {autosize: true, ...figure.layout, template: templates[root.dataset.theme]};
    await Plotly.newPlot(plot, figure.data, layout, CONFIG);
    const drawn = !plot.querySelector(".no-webgl");
    if (!drawn) {
      Plotly.purge(plot);
      plot.textContent = "This browser has no WebGL, so the plot is missing. The table below has its data.";
      plot.style.minHeight = "0";
      plot.parentElement.querySelector("details").open = true;
    }
    plot.dataset.drawn = String(drawn);
    return drawn;
  };
  // Whoever asks for a figure that is being drawn waits for that drawing.
  const draw = (plot) => {
    if (!drawings.has(plot)) {
      drawings.set(plot, begin(plot));
      drawings.get(plot).catch((fault) => {
        drawings.delete(plot);
        console.error(fault);
      });
    }
    return drawings.get(plot);
  };
  const drawAll = () => Promise.all(plots().map(draw));

  const shown = (value, kind) => {
    if (value === null) return "–";
    if (typeof value !== "number" || Number.isInteger(value)) return String(value);
    return kind === "figure" ? value.toFixed(4) : String(Number(value.toPrecision(4)));
  };
  // Nothing is smaller or larger than what is not there: it stands last in either order.
  const compare = (column, sign) => (one, other) => {
    const [a, b] = [one.row[column], other.row[column]];
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a === "number" && typeof b === "number") return sign * (a - b);
    return sign * String(a).localeCompare(String(b), "en", {numeric: true});
  };
  const fill = (box) => {
    const {columns, rows} = JSON.parse(box.querySelector("script").textContent);
    const numeric = columns.map((_, column) => rows.every((row) => row[column] === null || typeof row[column] === "number"));
    const order = rows.map((row) => ({row, text: row.join(" ").toLowerCase()}));
    const [body, filter] = [box.querySelector("tbody"), box.querySelector("input")];
    const [all, status] = [box.querySelector("button.all"), box.querySelector("output")];
    let most = AT_FIRST;
    const line = ({row}) => {
      const tr = document.createElement("tr");
      columns.forEach(({kind}, column) => {
        const value = row[column];
        const td = document.createElement(column === 0 ? "th" : "td");
        if (column === 0) td.scope = "row";
        td.textContent = shown(value, kind);
        if (numeric[column]) td.className = "number";
        if (typeof value === "number" && !Number.isInteger(value)) td.title = String(value);
        tr.append(td);
      });
      return tr;
    };
    const render = () => {
      const asked = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      const found = order.filter(({text}) => asked.every((word) => text.includes(word)));
      body.replaceChildren(...found.slice(0, most).map(line));
      const visible = Math.min(most, found.length);
      status.textContent = `${visible} of ${rows.length} trials shown`;
      all.hidden = visible === found.length;
      all.textContent = `Show all ${found.length}`;
    };
    [...box.querySelectorAll("thead th")].forEach((head, column) => {
      if (numeric[column]) head.className = "number";
      head.querySelector("button").addEventListener("click", () => {
        const to = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
        box.querySelectorAll("thead th").forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", to);
        order.sort(compare(column, to === "ascending" ? 1 : -1));
        render();
      });
    });
    filter.addEventListener("input", render);
    all.addEventListener("click", () => {
      most = Infinity;
      render();
      box.querySelector(".scroll").focus();
    });
    render();
    return () => {
      most = Infinity;
      render();
    };
  };

  document.addEventListener("DOMContentLoaded", () => {
    wear(root.dataset.theme);
    document.getElementById("theme").addEventListener("click", () => {
      const theme = root.dataset.theme === "dark" ? "light" : "dark";
      remember(theme);
      wear(theme);
    });
    system.addEventListener("change", () => wear(chosen()));
    const showAll = [...document.querySelectorAll(".trials")].map(fill);
    const seen = new IntersectionObserver(
      (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
        seen.unobserve(entry.target);
        draw(entry.target);
      }),
      {rootMargin: "300px"}
    );
    plots().forEach((plot) => seen.observe(plot));
    addEventListener("beforeprint", () => {
      showAll.forEach((show) => show());
      // First the theme: paper takes the page as it is when this returns, and so may afterprint come before the drawings.
      wear("light");
      drawAll();
    });
    addEventListener("afterprint", () => wear(chosen()));
  });
  window.report = {drawAll};
})();
