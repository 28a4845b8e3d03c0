-- The floor: one such event a transaction, by pgbench, into the same table with the same indexes.
insert into headwater.events (position, stream_id, version, ordinal, schema_version, event_id, command_id, correlation_id,
                              recorded_at, category, type, data)
select nextval('floor_position'), i.id, 1, 1, 1, uuidv7(), i.id, i.id, now(), 'account', 'MoneyDeposited',
       '{"account_id":"01980000-0000-7000-8000-000000000001","amount":"0.01","balance":"1234.56"}'
  from (select uuidv7() as id) i;
