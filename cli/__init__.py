"""The command line: words for people, JSON for scripts. No decisions and no drivers live here.

Nothing heavy is imported until a command runs, so that ``--help`` answers at once.
"""
