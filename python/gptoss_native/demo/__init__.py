"""What comes with the package to try it: a small model and a calculator for it to call."""
