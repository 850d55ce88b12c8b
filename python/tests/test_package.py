"""The package without a pooler. `python -m unittest discover python/tests` runs them; what needs
pglast is left out where it is not installed."""

import importlib.util
import os
import sys
import tempfile
import textwrap
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, os.pardir, "src"))

import switchyard  # noqa: E402
from switchyard import testing  # noqa: E402

PARSER = importlib.util.find_spec("pglast") is not None
RULES = """
    import switchyard

    reads = switchyard.counter("reads")

    def routing_rules(username, query, in_transaction):
        found = switchyard.cluster("app")
        if found and found.readers and "select" in query:
            reads.inc()
            return "app@reader"
        if "legacy" in switchyard.databases() and "old" in query:
            switchyard.log("warning", "an old table")
            return "legacy"
"""


def found(sql):
    parsed = switchyard.parse(sql)
    if parsed.error:
        return "error: " + parsed.error
    return "; ".join("%s %s [%s] [%s]" % (
        one.kind, "reads" if one.is_read_only else "writes", ",".join(one.tables),
        ",".join(one.functions)) for one in parsed.statements)


class Package(unittest.TestCase):
    def setUp(self):
        testing.reset()

    def test_state_is_absent_until_a_test_sets_it(self):
        self.assertEqual(switchyard.databases(), {})
        self.assertIsNone(switchyard.cluster("app"))
        testing.set_database("app", host="db", port=6000, pool_mode="transaction")
        entry = switchyard.databases()["app"]
        self.assertEqual(entry, {"host": "db", "port": 6000, "dbname": "app",
                                 "pool_mode": "transaction", "disabled": False})
        testing.set_cluster("app", writer="n1", readers=["n2"], lag_bytes={"n2": 7})
        cluster = switchyard.cluster("app")
        self.assertEqual(cluster, switchyard.Cluster("ok", "n1", ["n2"], {"n2": 7}))
        self.assertNotEqual(cluster, switchyard.Cluster())
        self.assertIn("writer='n1'", repr(cluster))

    def test_rules_are_tested_like_any_module(self):
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "rules.py")
            with open(path, "w") as out:
                out.write(textwrap.dedent(RULES))
            rules = testing.load(path)
        self.assertIsNone(rules.routing_rules("bob", "select 1", False))
        testing.set_cluster("app", readers=["n2"])
        self.assertEqual(rules.routing_rules("bob", "select 1", False), "app@reader")
        self.assertEqual(testing.counts(), {"reads": 1})
        testing.set_database("legacy")
        self.assertEqual(rules.routing_rules("bob", "delete from old", False), "legacy")
        self.assertEqual(testing.lines(), [("warning", "an old table")])

    def test_counters_grow_only(self):
        counter = switchyard.counter("hits:a-b.c_d1")
        self.assertIs(counter, switchyard.counter("hits:a-b.c_d1"))
        counter.inc()
        counter.inc(2)
        self.assertEqual(counter.value, 3)
        for wrong in (-1, 0.5, "1"):
            self.assertRaises(ValueError, counter.inc, wrong)
        for wrong in ("", "a b", "x" * 101, "\u00e9", None):
            self.assertRaises(ValueError, switchyard.counter, wrong)

    def test_levels(self):
        self.assertRaises(ValueError, switchyard.log, "loud", "text")
        switchyard.log("INFO", "text")
        self.assertEqual(testing.lines(), [("log", "text")])

    @unittest.skipIf(PARSER, "pglast is installed")
    def test_without_a_parser_it_says_so(self):
        self.assertIn("pglast", switchyard.parse("select 1").error)
        self.assertFalse(switchyard.is_read_only("select 1"))
        self.assertRaises(RuntimeError, switchyard.fingerprint, "select 1")


@unittest.skipUnless(PARSER, "pglast is not installed")
class Parser(unittest.TestCase):
    def test_it_finds_what_the_pooler_finds(self):
        with open(os.path.join(HERE, "statements.txt")) as lines:
            for line in lines:
                sql, _, expected = line.rstrip("\n").partition(" => ")
                self.assertEqual(found(sql), expected, sql)

    def test_a_text_as_a_whole(self):
        parsed = switchyard.parse("select f() from a; insert into b select g() from s.a, a")
        self.assertEqual(parsed.tables, ["a", "b", "s.a"])
        self.assertEqual(parsed.functions, ["f", "g"])
        self.assertEqual(parsed.kind, "select")
        self.assertFalse(parsed.is_read_only)
        self.assertIsNone(parsed.error)
        self.assertTrue(switchyard.is_read_only(""))
        self.assertIsNone(switchyard.parse("").kind)

    def test_errors_are_answers(self):
        parsed = switchyard.parse("selec 1")
        self.assertIn("syntax error", parsed.error)
        self.assertEqual((parsed.tables, parsed.kind, parsed.is_read_only), ([], None, False))
        self.assertIsNone(switchyard.fingerprint("selec 1"))
        self.assertIn("too long", switchyard.parse("select '%s'" % ("x" * 70000)).error)

    def test_constants_do_not_matter_to_a_fingerprint(self):
        same = switchyard.fingerprint
        self.assertEqual(same("select 1"), same("select   2"))
        self.assertNotEqual(same("select a from t"), same("select a from u"))


if __name__ == "__main__":
    unittest.main()
