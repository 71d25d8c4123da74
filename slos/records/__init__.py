"""What runs leave: rows of a sweep, our numbers next to the paper's, and the table of both."""
