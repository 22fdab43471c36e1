"""What the report says, a file for each subject; `write_report` puts them in order."""
