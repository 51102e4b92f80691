"""What every test folder shares; fixtures of one folder live in that folder."""
