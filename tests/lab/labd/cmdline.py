"""How cmd.exe reads a line: operators, quotes, carets, redirections, `%variables%`.

    sequence := either ('&' either)*      either := both ('||' either)?
    both     := pipe ('&&' both)?         pipe   := simple ('|' simple)*

Blocks in parentheses are not read: `Unsupported`. Nothing is run here.
"""

import re

SPACES = " \t,;="


class Unsupported(Exception):
    """More of cmd than the lab has."""


class Simple:
    """One command: its text (quotes kept, carets gone) and its redirections."""

    def __init__(self, text, redirections):
        self.text = text
        self.redirections = redirections  # (handle, '>' | '>>' | '<' | '&', target)

    @property
    def name(self):
        return split_name(self.text)[0]


class If:
    """`if` with everything after it on the line."""

    def __init__(self, rest):
        self.rest = rest


class For:
    """`for %x in (words) do` with everything after it on the line; no switches, no file names."""

    def __init__(self, letter, words, rest):
        self.letter = letter
        self.words = words
        self.rest = rest

    def lines(self):
        return [self.rest.replace("%" + self.letter, word) for word in self.words]


class Both:
    def __init__(self, operator, left, right):
        self.operator = operator
        self.left = left
        self.right = right


class Pipe:
    def __init__(self, parts):
        self.parts = parts


def expand(line, variables):
    """`%NAME%`, as a line given to `cmd /c` has it: what is unknown stays as it is."""
    known = {name.upper(): value for name, value in variables.items()}
    return re.sub(r"%([^%\r\n]+)%", lambda found: known.get(found[1].upper(), found[0]), line)


def split_name(text):
    """The command's name and what follows it, beginning with its separator."""
    text = text.lstrip(SPACES)
    if text.startswith('"'):
        end = text.find('"', 1)
        return (text[1:], "") if end < 0 else (text[1:end], text[end + 1 :])
    end = next((at for at, char in enumerate(text) if char in SPACES + "/" and at), len(text))
    name = text[:end]
    # `echo.` and `cd\` are names with something glued to them.
    glued = re.match(r"(echo|cd|type|del|dir)([.:\\].*)\Z", name, re.IGNORECASE)
    if glued:
        return glued[1], glued[2] + text[end:]
    return name, text[end:]


class Parser:
    def __init__(self, line):
        self.line = line
        self.at = 0

    def parse(self):
        parsed = self._sequence()
        if self.at != len(self.line):
            raise Unsupported(self.line[self.at :])
        return parsed

    def _operator(self):
        for operator in ("&&", "||", "&", "|"):
            if self.line.startswith(operator, self.at):
                return operator
        return None

    def _sequence(self):
        left = self._either()
        while self._operator() == "&":
            self.at += 1
            if not self.line[self.at :].strip():
                self.at = len(self.line)
                break
            left = Both("&", left, self._either())
        return left

    def _either(self):
        left = self._both()
        if self._operator() == "||":
            self.at += 2
            return Both("||", left, self._either())
        return left

    def _both(self):
        left = self._pipe()
        if self._operator() == "&&":
            self.at += 2
            return Both("&&", left, self._both())
        return left

    def _pipe(self):
        parts = [self._simple()]
        while self._operator() == "|":
            self.at += 1
            parts.append(self._simple())
        return parts[0] if len(parts) == 1 else Pipe(parts)

    def _simple(self):
        while self.at < len(self.line) and self.line[self.at] in SPACES + "@":
            self.at += 1
        if self.line.startswith("(", self.at):
            raise Unsupported("a block in parentheses")
        if re.match(r"if[ \t]", self.line[self.at :], re.IGNORECASE):
            rest, self.at = self.line[self.at + 2 :].lstrip(), len(self.line)
            return If(rest)
        if re.match(r"for[ \t]", self.line[self.at :], re.IGNORECASE):
            rest, self.at = self.line[self.at :], len(self.line)
            found = re.match(r"for\s+%([a-z])\s+in\s+\(([^()*?\"]*)\)\s+do\s+(.+)", rest, re.IGNORECASE | re.DOTALL)
            if not found:
                raise Unsupported(rest)
            return For(found[1], [word for word in re.split(f"[{SPACES}]+", found[2]) if word], found[3])
        text, redirections, quoted = "", [], False
        while self.at < len(self.line):
            char = self.line[self.at]
            if char == '"':
                quoted = not quoted
            elif not quoted and char == "^":
                self.at += 1
                text += self.line[self.at : self.at + 1]
                self.at += 1
                continue
            elif not quoted and char in "&|":
                break
            elif not quoted and char in "<>":
                handle = 0 if char == "<" else 1
                if text[-1:].isdigit() and (len(text) == 1 or text[-2] in SPACES):
                    handle, text = int(text[-1]), text[:-1]
                redirections.append(self._redirection(handle, char))
                continue
            text += char
            self.at += 1
        if not text.strip() and not redirections:
            raise Unsupported("an empty command")
        return Simple(text, redirections)

    def _redirection(self, handle, char):
        self.at += 1
        if char == ">" and self.line.startswith(">", self.at):
            char = ">>"
            self.at += 1
        if self.line.startswith("&", self.at):
            target = self.line[self.at + 1 : self.at + 2]
            if target not in ("1", "2"):
                raise Unsupported(f"redirection to {target!r}")
            self.at += 2
            return handle, "&", int(target)
        while self.at < len(self.line) and self.line[self.at] in SPACES:
            self.at += 1
        target, quoted = "", False
        while self.at < len(self.line):
            char_here = self.line[self.at]
            if char_here == '"':
                quoted = not quoted
            elif not quoted and char_here in SPACES + "&|<>":
                break
            else:
                target += char_here
            self.at += 1
        if not target:
            raise Unsupported("a redirection to nothing")
        return handle, char, target


def split_arguments(text):
    """The words of a command line, as the C runtime of a Windows program splits it."""
    words, word, inside, quoted, at = [], "", False, False, 0
    while at < len(text):
        char = text[at]
        if char == "\\":
            run = len(text[at:]) - len(text[at:].lstrip("\\"))
            at += run
            if at < len(text) and text[at] == '"':
                word += "\\" * (run // 2)
                if run % 2:
                    word += '"'
                    at += 1
            else:
                word += "\\" * run
            inside = True
            continue
        if char == '"':
            if quoted and text[at + 1 : at + 2] == '"':
                word += '"'
                at += 1
            else:
                quoted = not quoted
            inside = True
        elif char in " \t" and not quoted:
            if inside:
                words.append(word)
            word, inside = "", False
        else:
            word += char
            inside = True
        at += 1
    if inside:
        words.append(word)
    return words
