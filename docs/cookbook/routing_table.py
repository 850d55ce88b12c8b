import threading
import time
import psycopg
import switchyard

DSN = "host=127.0.0.1 port=5432 dbname=postgres user=postgres"
EVERY = 1.0
routes = None


def read():
    global routes
    try:
        with psycopg.connect(DSN, connect_timeout=5) as connection:
            routes = dict(connection.execute("select tablename, dbkey from routes"))
    except psycopg.Error as error:
        # The routes that were read last stay in force.
        switchyard.log("warning", "routes not read: %s" % error)


def refresh():
    while True:
        time.sleep(EVERY)
        read()


read()
threading.Thread(target=refresh, daemon=True).start()


def routing_rules(username, query, in_transaction):
    if routes is None:
        raise LookupError("the routes were not read yet")
    for table in switchyard.parse(query).tables:
        if table in routes:
            return routes[table]
    return None
