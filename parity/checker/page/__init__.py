"""What is said of it: the report as text, JSON and a page with figures."""
