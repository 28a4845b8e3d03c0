-- The short way of 0002 again, in fewer steps: what a small batch costs is mostly the start of each statement, a look at
-- what an index of the events is about to see anyway, and a random number for each event from the system.
--
-- A batch in which each command has one event, expects a version and names no claim, and commands on one stream expect
-- one version after another. behind: whether the command before it on its stream is in the batch too; null when none is.
-- Null, or the position of the last event before the batch.
drop function headwater.append_plain;
create function headwater.append_plain(
  command_ids uuid[], stream_ids uuid[], expected integer[], behind boolean[],
  kind_categories text[], kind_types text[], kind_versions smallint[], kinds integer[], payloads text[],
  correlation_ids uuid[], causation_ids uuid[], actors text[], tenants text[], traceparents text[]
) returns bigint language plpgsql volatile
  set jit = off
  set plan_cache_mode = force_generic_plan
  set search_path = headwater, pg_temp
as $$
declare
  size constant integer := cardinality(command_ids);
  base bigint;
  moment timestamptz;
  appended integer;
  -- One random number a batch, counted up (RFC 9562 section 6.2, method 2), from below half, so that it never runs over.
  seed constant text := translate(uuidv7()::text, '-', '');
  tail constant bigint := ('x' || right(seed, 16))::bit(64)::bigint & ~(1::bigint << 61);
begin
  -- Everything below sees what every earlier append has left, since each waits here for the one before it.
  update head set position = position + size, recorded_at = greatest(recorded_at, clock_timestamp())
    returning position - size, recorded_at, pg_notify('headwater', 'log:' || position) into strict base, moment;

  -- That nobody has gone on from an expected version, and that no command id is an event's, is what the unique indexes
  -- say. The commands without events are looked at once for all, so that a plan made while there were none costs a scan
  -- of few rows at most. OFFSET 0 keeps the other EXISTS to look-ups in an index, however long the log is.
  insert into events (position, stream_id, version, ordinal, schema_version, event_id, command_id, correlation_id,
                      causation_id, recorded_at, category, type, actor, tenant, traceparent, data)
  select base + u.place, u.stream_id, u.expected + 1, 1, kind_versions[coalesce(u.kind, 1)],
         (left(seed, 16) || to_hex(tail + u.place))::uuid, u.command_id,
         coalesce(u.correlation_id, u.command_id), u.causation_id, moment,
         kind_categories[coalesce(u.kind, 1)], kind_types[coalesce(u.kind, 1)], u.actor, u.tenant, u.traceparent,
         u.payload::json
    from unnest(command_ids, stream_ids, expected, behind, kinds, payloads, correlation_ids, causation_ids, actors,
                tenants, traceparents)
      with ordinality as u(command_id, stream_id, expected, behind, kind, payload, correlation_id, causation_id, actor,
                           tenant, traceparent, place)
   where not exists (select from commands c where c.command_id = any (command_ids))
         and (u.behind is true or u.expected = 0
              or exists (select from events e where e.stream_id = u.stream_id and e.version = u.expected offset 0));
  get diagnostics appended = row_count;
  if appended < size then
    raise unique_violation;
  end if;
  return base;
exception
  when unique_violation then  -- as if nothing had been called: position, events and ring are undone
    return null;
end $$;
comment on function headwater.append_plain is
  'Appends a batch of one-event commands as a whole, or nothing of it; append() is for all others, and for those who lose.';
