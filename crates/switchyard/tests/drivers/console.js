// The console through pg of Node: simple, extended and named statements.
const assert = require('assert');
const { Client } = require('pg');

(async () => {
  const client = new Client({
    host: '127.0.0.1', port: Number(process.argv[2]), user: 'postgres', database: 'pgbouncer',
  });
  await client.connect();
  for (const query of [
    'show lists', { text: 'show lists', values: [] }, { text: 'show lists', name: 'lists' },
    { text: 'show lists', name: 'lists' },
  ]) {
    const { rows, command } = await client.query(query);
    assert.strictEqual(command, 'SHOW');
    assert.deepStrictEqual(rows[0], { list: 'databases', items: 2 });
  }
  for (const query of ['nonsense', { text: 'nonsense', name: 'other' }]) {
    await assert.rejects(client.query(query), /invalid command 'nonsense', use SHOW HELP;/);
  }
  assert.strictEqual((await client.query('show state')).rows.length, 3);
  await client.end();
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
