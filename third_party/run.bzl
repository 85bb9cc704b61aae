"""How the repository rules run commands."""

_HOUR = 3600  # seconds; enough for torch over a slow line

def run(ctx, command, what, hint = "", quiet = False, environment = {}):
    """Runs a command for a repository rule. If the command fails, fails with its output.

    Args:
      ctx: the repository_ctx.
      command: list of strings and paths.
      what: names the command in the message.
      hint: what the user can do about a failure.
      quiet: whether to hide the command's output from the user.
      environment: variables to set in addition to those of the Bazel server.

    Returns:
      What the command printed, without white space at the ends.
    """
    result = ctx.execute(command, timeout = _HOUR, quiet = quiet, environment = environment)
    if result.return_code != 0:
        fail("{what} failed with exit code {code}.\n{hint}\n{output}".format(
            what = what,
            code = result.return_code,
            hint = hint,
            output = (result.stdout + result.stderr)[-4000:],
        ))
    return result.stdout.strip()
