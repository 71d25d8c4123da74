"""What runs leave: rows of a sweep, numbers beside the paper's, and the table of both."""
