"""Refuse a foreign chat template that takes too much time or memory."""

import subprocess
import sys
from collections.abc import Mapping

SECONDS, BYTES = 10, 1 << 30

# Jinja's sandbox limits neither time nor memory, and nothing in this process could stop a template that
# computes 9**9**9. Only these two are checked here; the trial encode finds everything else.
CODE = f"""
import sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, ({BYTES}, {BYTES}))
    resource.setrlimit(resource.RLIMIT_CPU, ({SECONDS}, {SECONDS}))
except ImportError:  # Windows
    pass
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

class Generation(Extension):  # transformers' tag
    tags = {{"generation"}}
    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)

environment = ImmutableSandboxedEnvironment(extensions=[Generation, loopcontrols])
parts = [{{"type": "image"}}, {{"type": "text", "text": "a dog"}}]
messages = [{{"role": "system", "content": [parts[1]]}}, {{"role": "user", "content": parts}}]
try:
    text = environment.from_string(sys.stdin.read()).render(messages=messages, add_generation_prompt=True)
except (MemoryError, OverflowError):
    sys.exit(3)
except Exception:
    sys.exit(0)
sys.exit(3 if len(text) > 1_000_000 else 0)
"""


def check_limits(template: str | Mapping[str, str], name: str) -> None:
    """Render a template, or several by name, in a separate process.

    Raises:
        ValueError: it takes too much time or memory.

    >>> check_limits("{% for m in messages %}{{ m.role }}{% endfor %}", "roles.jinja")
    >>> check_limits("{{ 'a' * 10**9 }}", "large.jinja")
    Traceback (most recent call last):
    ...
    ValueError: the chat template of large.jinja does not render within 10 seconds and 1 GiB; pass another one
    """
    for text in template.values() if isinstance(template, Mapping) else [template]:
        try:
            status = subprocess.run(
                [sys.executable, "-c", CODE],
                input=text,
                encoding="utf-8",
                errors="replace",
                capture_output=True,
                timeout=2 * SECONDS,
            ).returncode
        except subprocess.TimeoutExpired:
            status = 3
        if status:
            raise ValueError(
                f"the chat template of {name} does not render within {SECONDS} seconds and {BYTES >> 30} GiB; "
                "pass another one"
            )
