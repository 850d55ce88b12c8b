// What an application does through JDBC: prepared statements that the driver names after a few
// uses, batches, cursors, COPY, errors inside transactions, cancels. `java -cp JAR THIS PORT`.

import java.io.StringReader;
import java.sql.*;
import java.util.Properties;
import org.postgresql.PGConnection;

public class WithJdbc {
    static int port;

    static Connection connect(String mode) throws SQLException {
        Properties properties = new Properties();
        properties.setProperty("user", "postgres");
        properties.setProperty("password", "secret");
        properties.setProperty("preferQueryMode", mode);
        properties.setProperty("prepareThreshold", "2");
        properties.setProperty("ApplicationName", "jdbc " + mode);
        return DriverManager.getConnection("jdbc:postgresql://127.0.0.1:" + port + "/dev", properties);
    }

    static void check(boolean right, String what) {
        if (!right) {
            throw new AssertionError(what);
        }
    }

    static String one(Connection connection, String sql) throws SQLException {
        try (Statement statement = connection.createStatement();
                ResultSet rows = statement.executeQuery(sql)) {
            check(rows.next(), sql);
            return rows.getString(1);
        }
    }

    static void statements(Connection connection) throws SQLException {
        try (PreparedStatement add = connection.prepareStatement("select ?::int + ?::int, ?::text")) {
            for (int index = 0; index < 12; index++) {
                add.setInt(1, index);
                add.setInt(2, 1);
                add.setString(3, "it's " + index);
                try (ResultSet rows = add.executeQuery()) {
                    check(rows.next() && rows.getInt(1) == index + 1, "sum " + index);
                    check(rows.getString(2).equals("it's " + index), "text " + index);
                }
            }
        }
    }

    static void batches(Connection connection, String table) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            statement.execute("drop table if exists " + table);
            statement.execute("create table " + table + " (id serial primary key, name text)");
        }
        String insert = "insert into " + table + " (name) values (?)";
        try (PreparedStatement statement =
                connection.prepareStatement(insert, Statement.RETURN_GENERATED_KEYS)) {
            for (int index = 0; index < 500; index++) {
                statement.setString(1, "name " + index);
                statement.addBatch();
            }
            check(statement.executeBatch().length == 500, "batch");
            int keys = 0;
            try (ResultSet rows = statement.getGeneratedKeys()) {
                while (rows.next()) {
                    keys++;
                }
            }
            check(keys == 500, "keys " + keys);
        }
        check(one(connection, "select count(*) from " + table).equals("500"), "rows");
    }

    static void transactions(Connection connection, String table) throws SQLException {
        connection.setAutoCommit(false);
        try (Statement statement = connection.createStatement()) {
            statement.executeUpdate("delete from " + table + " where id <= 100");
            Savepoint point = connection.setSavepoint();
            try {
                statement.execute("select 1/0");
                check(false, "division");
            } catch (SQLException error) {
                check(error.getSQLState().equals("22012"), error.getSQLState());
            }
            connection.rollback(point);
            check(one(connection, "select count(*) from " + table).equals("400"), "inside");
        }
        // A cursor fetches in parts, over the same server.
        try (PreparedStatement statement = connection.prepareStatement("select * from " + table)) {
            statement.setFetchSize(7);
            int count = 0;
            try (ResultSet rows = statement.executeQuery()) {
                while (rows.next()) {
                    count++;
                }
            }
            check(count == 400, "cursor " + count);
        }
        connection.rollback();
        connection.setAutoCommit(true);
        check(one(connection, "select count(*) from " + table).equals("500"), "rolled back");
    }

    static void copies(Connection connection, String table) throws Exception {
        StringBuilder lines = new StringBuilder();
        for (int index = 1000; index < 6000; index++) {
            lines.append(index).append("\tcopied\n");
        }
        long count = connection.unwrap(PGConnection.class).getCopyAPI()
                .copyIn("copy " + table + " from stdin", new StringReader(lines.toString()));
        check(count == 5000, "copied " + count);
    }

    static void cancels(Connection connection) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            statement.setQueryTimeout(1);
            statement.execute("select pg_sleep(600)");
            check(false, "cancel");
        } catch (SQLException error) {
            check("57014".equals(error.getSQLState()), error.getSQLState() + error.getMessage());
        }
        check(one(connection, "select 1").equals("1"), "after the cancel");
    }

    static void all(String mode, int number) throws Exception {
        String table = "jdbc_" + mode.toLowerCase() + number;
        try (Connection connection = connect(mode)) {
            for (int round = 0; round < 3; round++) {
                statements(connection);
            }
            batches(connection, table);
            transactions(connection, table);
            copies(connection, table);
            cancels(connection);
            String name = one(connection, "select current_setting('application_name')");
            check(name.equals("jdbc " + mode), name);
        }
    }

    public static void main(String[] arguments) throws Exception {
        port = Integer.parseInt(arguments[0]);
        String[] modes = {"simple", "extended", "extendedForPrepared", "extendedCacheEverything"};
        Thread[] threads = new Thread[2 * modes.length];
        Throwable[] failures = new Throwable[threads.length];
        for (int index = 0; index < threads.length; index++) {
            int number = index;
            threads[index] = new Thread(() -> {
                try {
                    all(modes[number % modes.length], number);
                } catch (Throwable failure) {
                    failures[number] = failure;
                }
            });
            threads[index].start();
        }
        for (Thread thread : threads) {
            thread.join();
        }
        for (int index = 0; index < threads.length; index++) {
            if (failures[index] != null) {
                throw new Exception(modes[index % modes.length], failures[index]);
            }
        }
        System.out.println("fine");
    }
}
