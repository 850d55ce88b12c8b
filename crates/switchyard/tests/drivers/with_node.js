// node pg: a pool of clients, named statements, transactions, an error in the middle.
const { Pool } = require('pg');

const pool = new Pool({
  host: '127.0.0.1', port: Number(process.argv[2]), user: 'postgres', database: 'dev', max: 20,
});

async function work(number) {
  const named = { name: 'twice', text: 'select $1::int * 2 as value', values: [number] };
  const { rows } = await pool.query(named);
  if (rows[0].value !== number * 2) throw new Error(`${rows[0].value} for ${number}`);
  const client = await pool.connect();
  try {
    await client.query('begin');
    const inside = await client.query('select txid_current() as id');
    const again = await client.query('select txid_current() as id');
    if (inside.rows[0].id !== again.rows[0].id) throw new Error('another transaction');
    await client.query('commit');
  } finally {
    client.release();
  }
}

async function main() {
  await Promise.all(Array.from({ length: 300 }, (_, number) => work(number)));
  const failed = await pool.query('select 1/0').then(() => null, (error) => error.code);
  if (failed !== '22012') throw new Error(`told ${failed}`);
  await pool.end();
}

main().catch((error) => { console.error(error); process.exit(1); });
