"""What the software's speed is, as ratios measured side by side on the user's own machine and data."""
