"""For unit tests of hook functions: says what the absent pooler would know, and shows what it was
told.

    from switchyard import testing

    def test_reads_go_to_a_reader():
        testing.reset()
        testing.set_cluster("app", writer="n1", readers=["n2"])
        assert rules.routing_rules("bob", "select 1", False) == "app@reader"
"""

import switchyard
from switchyard._plain import Plain

__all__ = ["counts", "lines", "load", "reset", "set_cluster", "set_database"]


def _plain():
    backend = switchyard._ask()
    if not isinstance(backend, Plain):
        raise RuntimeError("switchyard.testing is for plain Python")
    return backend


def reset():
    """Forgets everything that was set, logged and counted."""
    switchyard._backend = Plain()
    switchyard._counters.clear()


def set_database(name, host=None, port=5432, dbname=None, pool_mode="session", disabled=False):
    """Adds an entry of [databases]."""
    _plain().entries[name] = {"host": host, "port": port, "dbname": dbname or name,
                              "pool_mode": pool_mode, "disabled": disabled}


def set_cluster(name, state="ok", writer=None, readers=(), lag_bytes=None):
    """Adds or changes a cluster."""
    _plain().clusters[name] = (state, writer, list(readers), dict(lag_bytes or {}))


def lines():
    """What was logged: pairs of level and text."""
    return list(_plain().lines)


def counts():
    """What was counted, by name of the counter."""
    return dict(_plain().counts)


def load(path, name="rules"):
    """Loads a file of functions as a fresh module, as the pooler does at start and reload."""
    import importlib.machinery
    import importlib.util
    import os
    import sys

    path = os.path.abspath(os.path.expanduser(path))
    if os.path.dirname(path) not in sys.path:
        sys.path.insert(0, os.path.dirname(path))
    loader = importlib.machinery.SourceFileLoader(name, path)
    spec = importlib.util.spec_from_loader(name, loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
