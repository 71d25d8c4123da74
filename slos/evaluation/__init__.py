"""What the notebooks run and draw: one module for each question, above everything else in `slos`."""
