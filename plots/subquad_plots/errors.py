"""What the user can put right; the scripts print it as one line and end with status 2."""


class UserError(Exception):
    pass
