"""Assets as metald needs them: leased before a byte is touched, placed in jails, given back."""
