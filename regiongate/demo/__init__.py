"""`regiongate demo`: real rows, four data centres, and proof that each row lies where its country's law says."""
