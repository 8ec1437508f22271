"""What jobs keep in an IDC's database: definitions, offsets, runs, scheduled times, and rows that were set aside."""
