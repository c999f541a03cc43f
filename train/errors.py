"""The two ways a run ends early on purpose."""


class UserError(Exception):
  """Bad input. The message is one line that says what to do; status 2."""


class Interrupted(Exception):
  """SIGTERM or Ctrl-C arrived; whatever can be saved has been saved."""
