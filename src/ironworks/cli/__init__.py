"""The command `iron`: one file a noun; everything of a platform is done through the SDK.

`main` has the table of commands and turns errors into sentences and exit statuses. A command's
module is imported only when the command is run, so that `iron --help` stays quick.
"""
