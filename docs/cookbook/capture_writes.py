import atexit
import queue
import threading
import psycopg
import switchyard

DSN = "host=127.0.0.1 port=5432 dbname=postgres user=postgres"
waiting = queue.Queue(maxsize=10000)


def write():
    connection, rows = None, []
    while None not in rows:
        rows = [waiting.get()]
        while len(rows) < 500 and not waiting.empty():
            rows.append(waiting.get())
        try:
            connection = connection or psycopg.connect(DSN, autocommit=True, connect_timeout=5)
            with connection.cursor() as cursor:
                cursor.executemany("insert into captured (username, query) values (%s, %s)",
                                   [row for row in rows if row])
        except psycopg.Error as error:
            connection = None
            switchyard.counter("capture.lost").inc(len(rows))
            switchyard.log("warning", "statements not captured: %s" % error)


writer = threading.Thread(target=write, daemon=True)
writer.start()


@atexit.register
def finish():
    waiting.put(None)
    writer.join(0.8)


def rewrite_query(username, query, in_transaction):
    parsed = switchyard.parse(query)
    if parsed.tables and not parsed.is_read_only:
        try:
            waiting.put_nowait((username, query))
        except queue.Full:
            switchyard.counter("capture.lost").inc()
    return None
