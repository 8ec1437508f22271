"""`regiongate demo`: real rows, five data centres, and proof that each row lies where its country's law says."""
