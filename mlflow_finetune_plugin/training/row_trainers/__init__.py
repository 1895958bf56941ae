"""The trainers whose rows are more than one sequence of text: pairs, ratings, and rows with pictures."""
