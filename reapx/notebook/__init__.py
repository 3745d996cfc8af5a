"""What is shown in notebooks, and tables for other programs."""
