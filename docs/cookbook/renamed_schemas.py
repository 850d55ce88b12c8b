import re

switchyard_pure = True

RENAMED = {"legacy": "sales", "old_stage": "stage"}

# Strings, quoted names and comments come first, so that nothing inside them is touched.
TOKEN = re.compile(r"""
    (?P<kept> [eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*"
            | --[^\n]* | /\*.*?\*/ | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$ )
    | (?<![\w$.]) (?P<schema> %s ) (?= \s*\.\s*["\w] )
    """ % "|".join(RENAMED), re.VERBOSE | re.IGNORECASE | re.DOTALL)


def rewrite_query(username, query, in_transaction):
    return TOKEN.sub(lambda m: m["kept"] or RENAMED[m["schema"].lower()], query)
