"""What is measured, as figures, sentences and tables, and the report that holds them all."""
