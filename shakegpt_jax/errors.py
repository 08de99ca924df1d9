"""What a user can mend."""


class UserError(ValueError):
    """Bad input: the message says what is wrong, what was given and what would be right."""
