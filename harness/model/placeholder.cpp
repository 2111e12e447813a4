namespace subquad {}
