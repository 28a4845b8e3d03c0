-- A batch in which each command has one event, expects a version and names no claim, no id stands twice, and commands on
-- one stream expect one version after another. It goes in as a whole, or, when anyone in it loses, not at all: then
-- append() has to judge each of them. What judges here is one boolean, where append() sorts and numbers the batch four
-- times; both statements start in a fraction of the time, and that is most of what a small batch costs.
--
-- led_streams and led_versions: each stream of the batch once, with the version that the first of its commands expects.
-- Null, or the position of the last event before the batch.
create function headwater.append_plain(
  command_ids uuid[], stream_ids uuid[], expected integer[], led_streams uuid[], led_versions integer[],
  kind_categories text[], kind_types text[], kind_versions smallint[], kinds integer[], payloads text[],
  correlation_ids uuid[], causation_ids uuid[], actors text[], tenants text[], traceparents text[]
) returns bigint language plpgsql volatile
  set jit = off
  set plan_cache_mode = force_generic_plan
  set search_path = headwater, pg_temp
as $$
declare
  base bigint;
  moment timestamptz;
begin
  -- Everything below sees what every earlier append has left, since each waits here for the one before it.
  select position, greatest(recorded_at, clock_timestamp()) into strict base, moment from head for update;

  -- OFFSET 0 keeps each EXISTS to one look-up in an index, however long the log is.
  if exists (
       select from unnest(led_streams, led_versions) as u(stream_id, version)
        where u.version > 0
              and not exists (select from events e where e.stream_id = u.stream_id and e.version = u.version offset 0)
           or exists (select from events e where e.stream_id = u.stream_id and e.version = u.version + 1 offset 0)
     ) or exists (
       select from unnest(command_ids) as u(command_id)
        where exists (select from events e where e.command_id = u.command_id offset 0)
           or exists (select from commands c where c.command_id = u.command_id offset 0)
     ) then
    return null;
  end if;

  insert into events (position, stream_id, version, ordinal, schema_version, event_id, command_id, correlation_id,
                      causation_id, recorded_at, category, type, actor, tenant, traceparent, data)
  select base + u.place, u.stream_id, u.expected + 1, 1, kind_versions[coalesce(u.kind, 1)], uuidv7(), u.command_id,
         coalesce(u.correlation_id, u.command_id), u.causation_id, moment,
         kind_categories[coalesce(u.kind, 1)], kind_types[coalesce(u.kind, 1)], u.actor, u.tenant, u.traceparent,
         u.payload::json
    from unnest(command_ids, stream_ids, expected, kinds, payloads, correlation_ids, causation_ids, actors, tenants,
                traceparents)
      with ordinality as u(command_id, stream_id, expected, kind, payload, correlation_id, causation_id, actor, tenant,
                           traceparent, place);

  update head set position = base + cardinality(command_ids), recorded_at = moment;
  perform pg_notify('headwater', 'log:' || base + cardinality(command_ids));
  return base;
end $$;
comment on function headwater.append_plain is
  'Appends a batch of one-event commands as a whole, or nothing of it; append() is for all others, and for those who lose.';
