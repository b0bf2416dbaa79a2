"""What a person looks at: report.html."""
