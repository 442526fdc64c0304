"""What a person looks at: figures, the table, the page, one picture explained word by word."""
