"""What the pooler tells the functions that route and rewrite, and takes from them.

Inside a pooler it answers itself. Under plain Python the state of a pooler is absent, `parse` and
its relatives use pglast, and `switchyard.testing` says what a test wants to be true.
"""

# Standard library only, CPython 3.6 and newer: this file also runs inside the pooler.

__all__ = ["Cluster", "Counter", "Parsed", "Statement", "cluster", "counter", "databases",
           "fingerprint", "is_read_only", "log", "parse"]

_backend = None


def _ask():
    global _backend
    if _backend is None:
        from ._plain import Plain
        _backend = Plain()
    return _backend


class _Record:
    __slots__ = ()

    def __eq__(self, other):
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    __hash__ = None

    def __repr__(self):
        fields = ", ".join("%s=%r" % (name, getattr(self, name)) for name in self.__slots__)
        return "%s(%s)" % (type(self).__name__, fields)


class Statement(_Record):
    """One statement of a text: `kind` in lower case (select, insert, create_table_as, ...), the
    names of its `tables` and `functions` in order, with their schema where it was written, and
    whether it is read-only as far as its text tells."""

    __slots__ = ("kind", "tables", "functions", "is_read_only")

    def __init__(self, kind, tables=(), functions=(), is_read_only=False):
        self.kind = kind
        self.tables = list(tables)
        self.functions = list(functions)
        self.is_read_only = is_read_only


class Parsed(_Record):
    """A text of SQL: its `statements`, all `tables` and `functions` in order, the `kind` of the
    first statement (None without one), whether all are read-only, and the parser's `error` or
    None. With an error the lists are empty and nothing is taken for read-only."""

    __slots__ = ("statements", "tables", "functions", "kind", "is_read_only", "error")

    def __init__(self, statements=(), error=None):
        self.statements = list(statements)
        self.error = error
        self.tables = []
        self.functions = []
        for one in self.statements:
            self.tables += [name for name in one.tables if name not in self.tables]
            self.functions += [name for name in one.functions if name not in self.functions]
        self.kind = self.statements[0].kind if self.statements else None
        self.is_read_only = error is None and all(one.is_read_only for one in self.statements)


class Cluster(_Record):
    """A cluster: its `state` (ok, suspect, holding, draining, split), the `writer`'s name or None,
    the names of the healthy `readers`, and `lag_bytes` of each node whose lag is known."""

    __slots__ = ("state", "writer", "readers", "lag_bytes")

    def __init__(self, state="ok", writer=None, readers=(), lag_bytes=None):
        self.state = state
        self.writer = writer
        self.readers = list(readers)
        self.lag_bytes = dict(lag_bytes or {})


class Counter:
    """A counter that operators see."""

    __slots__ = ("name", "_value")

    def __init__(self, name):
        self.name = name
        self._value = 0

    def inc(self, amount=1):
        """Adds to it; never less than nothing."""
        if not isinstance(amount, int) or amount < 0:
            raise ValueError("counters only grow, by whole numbers")
        self._value += amount
        _ask().count(self.name, amount)

    @property
    def value(self):
        """What this process has added."""
        return self._value


_counters = {}
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.:-")


def counter(name):
    """The counter of this name: letters, digits, `_`, `.`, `:` and `-`, at most 100 of them."""
    found = _counters.get(name)
    if found is None:
        good = isinstance(name, str) and 0 < len(name) <= 100
        if not good or not all(c in _LETTERS for c in name):
            raise ValueError("bad name of a counter: %r" % (name,))
        if len(_counters) >= 1000:
            raise ValueError("too many counters")
        found = _counters[name] = Counter(name)
    return found


def parse(sql):
    """What a text does, by PostgreSQL's own parser."""
    found = _ask().parse(sql)
    if isinstance(found, str):
        return Parsed(error=found)
    return Parsed(Statement(*one) for one in found)


def is_read_only(sql):
    """Whether a standby would run the text, as far as it tells; False if it cannot be parsed."""
    return parse(sql).is_read_only


def fingerprint(sql):
    """A text that is the same for statements that differ in constants only; None if it cannot be
    parsed."""
    return _ask().fingerprint(sql)


def cluster(name):
    """The cluster behind an entry of [databases], or None if it is none or not known."""
    found = _ask().cluster(name)
    return None if found is None else Cluster(*found)


def databases():
    """Entries of [databases]: name to a dict of host, port, dbname, pool_mode and disabled."""
    return _ask().databases()


LEVELS = {"debug": "debug", "info": "log", "log": "log", "notice": "log", "warn": "warning",
          "warning": "warning", "error": "error"}


def log(level, text):
    """Writes a line to the pooler's log: debug, log (or info), warning or error."""
    known = LEVELS.get(str(level).lower())
    if known is None:
        raise ValueError("unknown level: %r" % (level,))
    _ask().log(known, str(text))
