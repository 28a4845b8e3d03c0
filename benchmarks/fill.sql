-- A log of one-event deposits; event n is on stream n mod {streams}, which is opened by its first. The path leads to uuidv7().
set local search_path = headwater, public;
insert into headwater.events (position, stream_id, version, ordinal, schema_version, event_id, command_id, correlation_id,
                              recorded_at, category, type, data)
select n, s.id, ((n - 1) / {streams}) + 1, 1, 1, uuidv7(), c.id, c.id, now(), 'account', k.type, k.data
  from (select n, uuidv7() as id from generate_series(1, {events}) as n) c
 cross join lateral (select lpad(to_hex(n % {streams}), 32, '0')::uuid as id) s
 cross join lateral (
   select case when n <= {streams} then 'AccountOpened' else 'MoneyDeposited' end as type,
          case when n <= {streams}
               then json_build_object('account_id', s.id, 'owner_id', s.id, 'currency', 'EUR')
               else json_build_object('account_id', s.id, 'amount', '0.01', 'balance', ((n - 1) / {streams} * 0.01)::text)
          end as data
 ) k;
update headwater.head set position = {events}, recorded_at = now();
