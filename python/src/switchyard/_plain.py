"""What stands in for the pooler under plain Python: its state is absent until a test says
otherwise (`switchyard.testing`), and statements are parsed by pglast, if it is installed."""

import json
import sys

TEXT_MAX = 64 * 1024
NO_PARSER = "pglast is not installed: pip install 'switchyard-hooks[parser]'"

READING = {"SelectStmt", "VariableShowStmt", "ExplainStmt", "TransactionStmt"}
WRITING = {"InsertStmt", "UpdateStmt", "DeleteStmt", "MergeStmt", "IntoClause", "LockingClause"}
WRITING_FUNCTIONS = {
    "nextval", "setval", "pg_notify", "dblink_exec", "lowrite", "pg_promote", "pg_switch_wal",
    "txid_current", "pg_current_xact_id", "pg_terminate_backend", "pg_cancel_backend",
    "pg_reload_conf", "set_config", "pg_import_system_collations", "query_to_xml"}
WRITING_FAMILIES = ("pg_advisory_", "pg_try_advisory_", "pg_logical_", "pg_replication_",
                    "pg_create_", "pg_drop_", "pg_stat_reset", "lo_")
FIELDS = {"intoClause": "IntoClause", "funccall": "FuncCall"}


def kind_name(node):
    name = node[:-4] if node.endswith("Stmt") else node
    plain = {"VariableSet": "set", "VariableShow": "show"}.get(name)
    if plain is not None:
        return plain
    return "".join("_" + c.lower() if c.isupper() and at else c.lower()
                   for at, c in enumerate(name))


def names(parts):
    return [part["String"]["sval"] for part in parts if "String" in part]


class Walk:
    """One statement's tree: tables, functions, and which nodes there are."""

    def __init__(self):
        self.tables = []
        self.functions = []
        self.nodes = set()

    def note(self, found, name):
        if name not in found:
            found.append(name)

    def relation(self, node, hidden):
        name, schema = node["relname"], node.get("schemaname")
        if schema:
            self.note(self.tables, schema + "." + name)
        elif name not in hidden:
            self.note(self.tables, name)

    def visit(self, kind, node, hidden):
        self.nodes.add(kind)
        if kind == "RangeVar":
            return self.relation(node, hidden)
        if kind == "FuncCall":
            self.note(self.functions, ".".join(names(node["funcname"])))
        elif kind == "DropStmt" and node.get("removeType") in ("OBJECT_TABLE", "OBJECT_VIEW"):
            for one in node.get("objects", ()):
                self.note(self.tables, ".".join(names(one["List"]["items"])))
        clause = node.get("withClause")
        if clause is not None:
            hidden = hidden | {one["CommonTableExpr"]["ctename"] for one in clause["ctes"]}
        # What the FROM clause names comes first, as it is bound first.
        order = sorted(node, key=lambda field: field not in ("relation", "fromClause", "into"))
        for field in order:
            self.enter(field, node[field], hidden)

    def enter(self, field, value, hidden):
        if isinstance(value, list):
            for one in value:
                self.enter(field, one, hidden)
        elif isinstance(value, dict):
            if len(value) == 1:
                (kind, inner), = value.items()
                if kind[:1].isupper() and isinstance(inner, dict):
                    return self.visit(kind, inner, hidden)
            if "relname" in value:
                return self.visit("RangeVar", value, hidden)
            self.visit(FIELDS.get(field, field), value, hidden)

    def is_read_only(self):
        last = [name.rsplit(".", 1)[-1] for name in self.functions]
        return not self.nodes & WRITING and not any(
            name in WRITING_FUNCTIONS or name.startswith(WRITING_FAMILIES) for name in last)


def statement(tree):
    (node, inner), = tree.items()
    walk = Walk()
    walk.visit(node, inner, frozenset())
    kinds = {one for one in walk.nodes if one.endswith("Stmt")}
    reads = kinds <= READING and walk.is_read_only()
    return kind_name(node), walk.tables, walk.functions, reads


class Plain:
    """A pooler that is not there. The attributes are for tests to set."""

    def __init__(self):
        self.entries = {}
        self.clusters = {}
        self.lines = []
        self.counts = {}

    def parse(self, sql):
        if len(sql.encode("utf-8", "surrogateescape")) > TEXT_MAX:
            size = len(sql.encode("utf-8", "surrogateescape"))
            return "text of %d bytes is too long for the parser" % size
        try:
            from pglast.parser import ParseError, parse_sql_json
        except ImportError:
            return NO_PARSER
        try:
            tree = json.loads(parse_sql_json(sql.encode("utf-8", "replace").decode("utf-8")))
        except ParseError as error:
            return "Invalid statement: %s" % error.args[0]
        return [statement(one["stmt"]) for one in tree.get("stmts", ())]

    def fingerprint(self, sql):
        try:
            from pglast.parser import ParseError, fingerprint
        except ImportError:
            raise RuntimeError(NO_PARSER) from None
        try:
            return fingerprint(sql.encode("utf-8", "replace").decode("utf-8"))
        except ParseError:
            return None

    def cluster(self, name):
        return self.clusters.get(name)

    def databases(self):
        return {name: dict(entry) for name, entry in self.entries.items()}

    def log(self, level, text):
        self.lines.append((level, text))
        sys.stderr.write("%s: %s\n" % (level, text))

    def count(self, name, amount):
        self.counts[name] = self.counts.get(name, 0) + amount
