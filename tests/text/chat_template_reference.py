"""Renders with jinja2 as Hugging Face transformers sets it up: the reference of the snippets.

  python3 chat_template_reference.py snippets <snippets.json>   writes "expected" of each snippet
  python3 chat_template_reference.py departures <folder>        writes npm_departures.json: where
                                                                *.expected.json, made by
                                                                @huggingface/jinja, differs
Needs jinja2 3.1 (pip install jinja2).
"""

import datetime
import glob
import json
import os
import sys

import jinja2
import jinja2.ext
from jinja2.nodes import CallBlock
from jinja2.sandbox import ImmutableSandboxedEnvironment

NOW = datetime.datetime(2024, 7, 26, tzinfo=datetime.timezone.utc)


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    @jinja2.pass_eval_context
    def _body(self, context, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def environment():
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = NOW.strftime
    return env


def render(template, variables):
    try:
        return {"text": environment().from_string(template).render(**variables)}
    except jinja2.exceptions.TemplateError as error:
        return {"error": str(error)}
    except (TypeError, ValueError, KeyError, ArithmeticError, SyntaxError) as error:
        return {"error": str(error)}


def write_snippets(path):
    with open(path) as file:
        snippets = json.load(file)
    for snippet in snippets["cases"]:
        snippet["expected"] = render(snippet["template"], snippets["variables"]).get("text")
    with open(path, "w") as file:
        json.dump(snippets, file, indent=1, ensure_ascii=False)
        file.write("\n")


def write_departures(folder):
    """Where @huggingface/jinja is not what transformers does, by template and input."""
    departures = {}
    with open(os.path.join(folder, "inputs.json")) as file:
        inputs = json.load(file)
    for path in sorted(glob.glob(os.path.join(folder, "*.expected.json"))):
        name = os.path.basename(path).removesuffix(".expected.json")
        with open(path) as file:
            cases = json.load(file)
        with open(os.path.join(folder, name + ".jinja")) as file:
            template = file.read()
        for case, expected in cases.items():
            got = render(template, inputs[case]).get("text")
            if got != expected.get("text"):
                departures.setdefault(name, {})[case] = {"error": True} if got is None else {"text": got}
    with open(os.path.join(folder, "npm_departures.json"), "w") as file:
        json.dump(departures, file, indent=1, ensure_ascii=False)
        file.write("\n")


if __name__ == "__main__":
    if sys.argv[1] == "snippets":
        write_snippets(sys.argv[2])
    else:
        write_departures(sys.argv[2])
