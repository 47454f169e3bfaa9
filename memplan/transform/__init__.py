"""Apply plans to models, and measure real steps."""
