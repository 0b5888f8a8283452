"""The networks of both tasks, and the text encoder that they share."""
