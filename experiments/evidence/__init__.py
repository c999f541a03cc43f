"""What the report says: numbers, tables, pictures and answers."""
