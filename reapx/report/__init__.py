"""What the user sees: tables in the terminal, pages with plots."""
