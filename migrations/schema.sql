CREATE SCHEMA headwater;
CREATE FUNCTION headwater.append(command_ids uuid[], names text[], stream_ids uuid[], expected integer[], counts integer[], kind_categories text[], kind_types text[], kind_versions smallint[], kinds integer[], payloads text[], correlation_ids uuid[], causation_ids uuid[], actors text[], tenants text[], traceparents text[], claim_commands integer[], claim_takes boolean[], claim_names text[], claim_values text[], hold_commands integer[], hold_streams uuid[], hold_versions integer[], of_epoch integer, OUT verdicts "char"[], OUT versions integer[], OUT positions bigint[], OUT streams uuid[], OUT blockers integer[]) RETURNS record
    LANGUAGE plpgsql
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    SET search_path TO 'headwater', 'pg_temp'
    AS $$
<<batch>>
declare
  base bigint;             -- the position before this call
  passed boolean;
  moment timestamptz;
  behind boolean[];        -- by command: an earlier command of this call names the same command id or claim
  moved integer[];         -- commands that hold a stream which has moved on
  newly_moved integer[];
  places integer[];        -- by event: the place of its command in this call
  ordinals integer[];      -- by event: its place among the events of its command
  any_without_events boolean;
  appended integer;
begin
  -- Appends take turns at this lock, so everything below sees the result of every earlier append.
  select position, greatest(recorded_at, clock_timestamp()),
         epoch <> of_epoch or timeline <> timeline_now() or made_as <> tableoid
    into strict base, moment, passed from head for update;
  if passed then
    perform refuse_epoch();
  end if;
  any_without_events := exists (select from commands);
  -- 1. Of the commands that name the same command id or claim, only the first proceeds. Most calls skip this.
  --    One pass over commands and one over claims, combined by grouping: a join of the two is planned for ten of each and
  --    would compare all with all.
  if cardinality(claim_commands) > 0
     or (select count(distinct id) from unnest(command_ids) as id) < cardinality(command_ids) then
    with repeated_id as (
      select u.place as command, u.place > min(u.place) over (partition by u.command_id) as behind,
             null::integer as blocker
        from unnest(command_ids) with ordinality as u(command_id, place)
    ), claim as (
      select command, take, name collate "C" as name, value collate "C" as value, place
        from unnest(claim_commands, claim_takes, claim_names, claim_values) with ordinality
          as k(command, take, name, value, place)
    ), repeated_claim as (
      select claim.command, claim.command > min(claim.command) over (partition by claim.name, claim.value) as behind,
             case when claim.take and held.stream_id <> stream_ids[claim.command] then claim.place::integer end as blocker
        from claim
        left join lateral (
          select c.stream_id from claims c where c.name = claim.name and c.value = claim.value limit 1
        ) held on true
    ), by_command as (
      select r.command, bool_or(r.behind) as behind, min(r.blocker) as blocker
        from (select * from repeated_id union all select * from repeated_claim) r
       group by r.command
    )
    select array_agg(b.behind order by b.command), array_agg(b.blocker order by b.command)
      into behind, blockers
      from by_command b;
  end if;
  -- Once, unless a command holds a stream that has moved on. It loses then, and the others are judged anew: some may rest on it.
  loop
    -- 2. The verdicts. Each LEFT JOIN LATERAL ... LIMIT 1 is an index look-up, however long the log is: EXISTS and plain joins
    --    became hash plans over the whole table. Each step is named once and used once, so that PostgreSQL inlines it.
    with command as (
      -- before: events that earlier commands of this call add to the same stream
      select u.place, u.command_id, u.stream_id, u.expected, coalesce(u.n, 1) as n,
             (sum(coalesce(u.n, 1)) over (partition by u.stream_id order by u.place rows unbounded preceding)
              - coalesce(u.n, 1))::integer as before
        from unnest(command_ids, stream_ids, expected, counts) with ordinality
          as u(command_id, stream_id, expected, n, place)
    ), at_version as (
      -- fits: the stream is at the expected version, that is, that event exists and the next does not. Two index look-ups;
      -- the end of a long stream would be a page of index entries.
      select c.*, coalesce(c.expected >= c.before and (c.expected = c.before or this.found) and next.found is null, false) as fits
        from command c
        left join lateral (
          select true as found from events e
           where e.stream_id = c.stream_id and e.version = c.expected - c.before limit 1
        ) this on c.expected > c.before
        left join lateral (
          select true as found from events e
           where e.stream_id = c.stream_id and e.version = c.expected - c.before + 1 limit 1
        ) next on true
    ), located as (
      -- actual: the version that the stream has, or will have once the earlier commands of this call are written
      select v.*, case when v.fits then v.expected else coalesce(last.version, 0) + v.before end as actual,
             coalesce(with_events.version, without_events.version) as done_version,
             coalesce(with_events.position, without_events.position) as done_position,
             coalesce(with_events.stream_id, without_events.stream_id) as done_stream
        from at_version v
        left join lateral (
          select e.version from events e
           where not v.fits and e.stream_id = v.stream_id order by e.version desc limit 1
        ) last on true
        left join lateral (
          select e.version, e.position, e.stream_id from events e
           where e.command_id = v.command_id order by e.ordinal desc limit 1
        ) with_events on true
        left join lateral (
          select q.version, q.position, q.stream_id from commands q
           where batch.any_without_events and q.command_id = v.command_id limit 1
        ) without_events on true
    ), examined as (
      select l.*, l.done_position is not null as done,
             coalesce(batch.behind[l.place], false) as is_behind,
             l.expected is not null and not l.fits as wrong,
             append.blockers[l.place] is not null as taken,
             coalesce(l.place = any (batch.moved), false) as is_moved
        from located l
    ), judged as (
      select x.*, not x.done and not x.is_behind and not x.wrong and not x.taken and not x.is_moved as ok from examined x
    ), settled as (
      -- clear: all earlier commands of this call on the stream are accepted
      select j.*, coalesce(bool_and(j.ok) over (
               partition by j.stream_id order by j.place rows between unbounded preceding and 1 preceding), true) as clear
        from judged j
    ), verdict as (
      select s.place,
             case when s.done then 'd' when s.is_behind or not s.clear then 'b' when s.wrong then 'c' when s.taken then 't'
                  when s.is_moved then 'm' else 'a' end::"char" as verdict,
             case when s.done then s.done_version when s.clear and s.ok then s.actual + s.n else s.actual end as version,
             case when s.done then s.done_position
                  else base + coalesce(sum(s.n) filter (where s.clear and s.ok) over (order by s.place), 0) end as position,
             case when s.done then s.done_stream else s.stream_id end as stream_id
        from settled s
       order by s.place
    )
    select array_agg(v.verdict), array_agg(v.version), array_agg(v.position), array_agg(v.stream_id)
      into verdicts, versions, positions, streams
      from verdict v;
    exit when hold_commands is null;
    -- 3. The commands that hold a stream which is at another version than the one at which they were decided. It is at the
    --    version of the last accepted command before them in this call, or else at that of the log.
    select array_agg(distinct h.command) into newly_moved
      from (
        select distinct on (k.place) k.command, k.version as held, coalesce(u.version, written.version, 0) as actual
          from unnest(hold_commands, hold_streams, hold_versions) with ordinality as k(command, stream_id, version, place)
          left join unnest(stream_ids, verdicts, versions) with ordinality as u(stream_id, verdict, version, place)
            on u.stream_id = k.stream_id and u.verdict = 'a' and u.place < k.command
          left join lateral (
            select e.version from events e where e.stream_id = k.stream_id order by e.version desc limit 1
          ) written on true
         where verdicts[k.command] = 'a'
         order by k.place, u.place desc nulls last
      ) h
     where h.held <> h.actual;
    exit when newly_moved is null;
    moved := moved || newly_moved;
  end loop;
  -- 4. The events of the accepted commands.
  if counts is not null then
    select array_agg(u.place order by u.place, o), array_agg(o order by u.place, o) into places, ordinals
      from unnest(counts) with ordinality as u(n, place), generate_series(1, u.n) as o;
  end if;
  insert into events (position, stream_id, version, ordinal, schema_version, event_id, command_id, correlation_id,
                      causation_id, recorded_at, category, type, command, actor, tenant, traceparent, data)
  select positions[e.place] - e.n + e.ordinal, stream_ids[e.place], versions[e.place] - e.n + e.ordinal, e.ordinal,
         kind_versions[e.kind], uuidv7(), command_ids[e.place],
         coalesce(correlation_ids[e.place], command_ids[e.place]), causation_ids[e.place], moment,
         kind_categories[e.kind], kind_types[e.kind], names[e.place], actors[e.place], tenants[e.place],
         traceparents[e.place], e.payload::json
    from (
      select coalesce(u.place, u.k)::integer as place, coalesce(u.ordinal, 1) as ordinal, coalesce(u.kind, 1) as kind,
             u.payload, case when counts is null then 1 else counts[u.place] end as n
        from unnest(payloads, places, ordinals, kinds) with ordinality as u(payload, place, ordinal, kind, k)
    ) e
   where verdicts[e.place] = 'a';
  get diagnostics appended = row_count;
  if counts is not null and 0 = any(counts) then
    insert into commands (command_id, stream_id, version, position, name)
    select u.command_id, u.stream_id, u.version, u.position, u.name
      from unnest(command_ids, names, stream_ids, counts, verdicts, versions, positions)
        as u(command_id, name, stream_id, n, verdict, version, position)
     where u.verdict = 'a' and u.n = 0;
  end if;
  -- 5. Their claims. When a command takes and releases one value, its last word counts.
  if cardinality(claim_commands) > 0 then
    with last_word as (
      select distinct on (k.command, k.name, k.value) k.take, k.name, k.value, stream_ids[k.command] as stream_id
        from unnest(claim_commands, claim_takes, claim_names, claim_values) with ordinality
          as k(command, take, name, value, place)
       where verdicts[k.command] = 'a'
       order by k.command, k.name, k.value, k.place desc
    ), released as (
      delete from claims using last_word l
       where not l.take and claims.name = l.name and claims.value = l.value and claims.stream_id = l.stream_id
    )
    insert into claims (name, value, stream_id)
    select l.name, l.value, l.stream_id from last_word l where l.take
    -- The stream itself may hold the value already. Another stream's would have been verdict t.
    on conflict (name, value) do nothing;
  end if;
  -- 6. The end of the log, and the doorbell.
  if appended > 0 then
    update head set position = base + appended, recorded_at = moment;
    perform pg_notify('headwater', 'log:' || base + appended);
  end if;
end $$;
COMMENT ON FUNCTION headwater.append(command_ids uuid[], names text[], stream_ids uuid[], expected integer[], counts integer[], kind_categories text[], kind_types text[], kind_versions smallint[], kinds integer[], payloads text[], correlation_ids uuid[], causation_ids uuid[], actors text[], tenants text[], traceparents text[], claim_commands integer[], claim_takes boolean[], claim_names text[], claim_values text[], hold_commands integer[], hold_streams uuid[], hold_versions integer[], of_epoch integer, OUT verdicts "char"[], OUT versions integer[], OUT positions bigint[], OUT streams uuid[], OUT blockers integer[]) IS 'Appends the events of many commands in one call: contiguous positions, a verdict for each command, one doorbell.';
CREATE FUNCTION headwater.append_plain(command_ids uuid[], names text[], stream_ids uuid[], expected integer[], behind boolean[], kind_categories text[], kind_types text[], kind_versions smallint[], kinds integer[], payloads text[], correlation_ids uuid[], causation_ids uuid[], actors text[], tenants text[], traceparents text[], of_epoch integer) RETURNS bigint
    LANGUAGE plpgsql
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    SET search_path TO 'headwater', 'pg_temp'
    AS $$
declare
  size constant integer := cardinality(command_ids);
  base bigint;
  moment timestamptz;
  passed boolean;
  appended integer;
  -- The event ids count up from one random number (RFC 9562 section 6.2, method 2) in the lower half, so that none overflows.
  seed constant text := translate(uuidv7()::text, '-', '');
  tail constant bigint := ('x' || right(seed, 16))::bit(64)::bigint & ~(1::bigint << 61);
begin
  -- Appends take turns at this lock, so everything below sees the result of every earlier append.
  update head set position = position + size, recorded_at = greatest(recorded_at, clock_timestamp())
    returning position - size, recorded_at, epoch <> of_epoch or timeline <> timeline_now() or made_as <> tableoid,
              pg_notify('headwater', 'log:' || position)
    into strict base, moment, passed;
  if passed then
    perform refuse_epoch();
  end if;
  -- The unique indexes check that no other event follows an expected version and that no command id has left an event. One
  -- look at headwater.commands serves the whole batch: planned while that table is empty, it costs a scan of few rows at
  -- most. OFFSET 0 keeps the other EXISTS an index look-up, however long the log is.
  insert into events (position, stream_id, version, ordinal, schema_version, event_id, command_id, correlation_id,
                      causation_id, recorded_at, category, type, command, actor, tenant, traceparent, data)
  select base + u.place, u.stream_id, u.expected + 1, 1, kind_versions[coalesce(u.kind, 1)],
         (left(seed, 16) || to_hex(tail + u.place))::uuid, u.command_id,
         coalesce(u.correlation_id, u.command_id), u.causation_id, moment,
         kind_categories[coalesce(u.kind, 1)], kind_types[coalesce(u.kind, 1)], u.name, u.actor, u.tenant, u.traceparent,
         u.payload::json
    from unnest(command_ids, names, stream_ids, expected, behind, kinds, payloads, correlation_ids, causation_ids, actors,
                tenants, traceparents)
      with ordinality as u(command_id, name, stream_id, expected, behind, kind, payload, correlation_id, causation_id,
                           actor, tenant, traceparent, place)
   where not exists (select from commands c where c.command_id = any (command_ids))
         and (u.behind is true or u.expected = 0
              or exists (select from events e where e.stream_id = u.stream_id and e.version = u.expected offset 0));
  get diagnostics appended = row_count;
  if appended < size then
    raise unique_violation;
  end if;
  return base;
exception
  when unique_violation then
    return null;
end $$;
COMMENT ON FUNCTION headwater.append_plain(command_ids uuid[], names text[], stream_ids uuid[], expected integer[], behind boolean[], kind_categories text[], kind_types text[], kind_versions smallint[], kinds integer[], payloads text[], correlation_ids uuid[], causation_ids uuid[], actors text[], tenants text[], traceparents text[], of_epoch integer) IS 'Appends a batch of one-event commands as a whole, or nothing of it; append() judges all other batches.';
CREATE FUNCTION headwater.begin_epoch(known integer, why text, kept bigint DEFAULT NULL::bigint) RETURNS void
    LANGUAGE plpgsql
    SET search_path TO 'headwater', 'pg_temp'
    AS $$
declare
  here constant text := server();
  ended bigint;
begin
  -- Of the processes that find it at once, the first begins the epoch and the others find it begun.
  select h.position into ended from head h where h.epoch = known for update;
  if not found then
    return;
  end if;
  insert into epochs (epoch, tag, server, position, reason)
  values (known + 1, left(gen_random_uuid()::text, 8), here, least(kept, ended), why);
  update head set epoch = known + 1, timeline = split_part(here, '/', 2), made_as = tableoid;
  -- Every lease ends, and no fencing token of the lost time is valid again.
  update projections
     set owner = null, fence = fence + (1::bigint << 32),
         rewind_to = case when position > ended then least(rewind_to, ended) else rewind_to end;
  perform pg_notify('headwater', 'epoch:' || known + 1);
end $$;
COMMENT ON FUNCTION headwater.begin_epoch(known integer, why text, kept bigint) IS 'Ends the known epoch, unless it has ended already.';
CREATE TABLE headwater.epochs (
    epoch integer NOT NULL,
    tag text NOT NULL COLLATE pg_catalog."C",
    server text COLLATE pg_catalog."C",
    "position" bigint NOT NULL,
    reason text NOT NULL,
    began_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    CONSTRAINT epochs_epoch_check CHECK ((epoch > 0)),
    CONSTRAINT epochs_position_check CHECK (("position" >= 0))
);
COMMENT ON TABLE headwater.epochs IS 'A position is a number of one epoch. A new epoch begins when the log may have lost its end: a replica was promoted, or a backup restored. What processes and clients know of later positions of an earlier epoch is then void.';
COMMENT ON COLUMN headwater.epochs.tag IS 'Random: two copies of a database that both go on begin different epochs, though with the same number.';
COMMENT ON COLUMN headwater.epochs.server IS 'The cluster''s system identifier, its timeline, the oid of the database, and the oid of the table headwater.head, which a restored dump makes anew. Another value means a new epoch. Null until the first process connects.';
COMMENT ON COLUMN headwater.epochs."position" IS 'Up to here, positions mean the same in this epoch and in the one before: the end of the log when the epoch began, or less if others had gone on by then on a log that lacked a command.';
CREATE FUNCTION headwater.enter_epoch(tag text, positions bigint[], command_ids uuid[], all_known boolean) RETURNS SETOF headwater.epochs
    LANGUAGE plpgsql
    SET search_path TO 'headwater', 'pg_temp'
    AS $$
declare
  current epochs;
  here text;
  kept bigint;
  beyond boolean := false;
begin
  select e.* into strict current from head h join epochs e on e.epoch = h.epoch;
  if not pg_is_in_recovery() and not current_setting('transaction_read_only')::boolean then
    here := server();
    if current.server is null then
      perform from head for update;
      update epochs e set server = here, tag = left(gen_random_uuid()::text, 8), began_at = clock_timestamp()
       where e.epoch = current.epoch and e.server is null;
      update head set timeline = split_part(here, '/', 2), made_as = tableoid where timeline is null;
    elsif current.server <> here then
      perform begin_epoch(current.epoch, format('the server is %s, was %s', here, current.server));
    elsif current.tag = enter_epoch.tag and cardinality(positions) > 0
          and not exists (select from events e where e.position = positions[1] and e.command_id = command_ids[1]) then
      if not all_known then
        return;
      end if;
      select coalesce(max(k.position), 0) into kept
        from unnest(positions, command_ids) as k(position, command_id)
        join events e on e.position = k.position and e.command_id = k.command_id;
      perform begin_epoch(current.epoch, format('position %s was known and is gone', positions[1]), kept);
    else
      begin
        -- Not waited for: a lock on the checkpoints must not keep a process from connecting. A later connection looks again.
        lock table projections in access share mode nowait;
        beyond := exists (select from projections p, head h where p.position > h.position and p.rewind_to is null);
      exception
        when lock_not_available then null;
      end;
      if beyond then
        perform begin_epoch(current.epoch, 'a checkpoint was beyond the end of the log');
      end if;
    end if;
  end if;
  return query select * from epochs e order by e.epoch;
end $$;
COMMENT ON FUNCTION headwater.enter_epoch(tag text, positions bigint[], command_ids uuid[], all_known boolean) IS 'Begins a new epoch if the log may have lost its end, and returns all epochs, the current one last.';
CREATE FUNCTION headwater.probe_append(of_epoch integer, OUT free boolean, OUT "position" bigint) RETURNS record
    LANGUAGE plpgsql
    SET search_path TO 'headwater', 'pg_temp'
    AS $$
declare
  passed boolean;
begin
  begin
    lock table head, events, commands, claims in row exclusive mode nowait;
    select epoch <> of_epoch or timeline <> timeline_now() or made_as <> tableoid into strict passed from head for update nowait;
    raise exception 'the locks are given back' using errcode = 'HW002';
  exception
    when sqlstate 'HW002' then free := true;
    when lock_not_available then free := false;
  end;
  if passed then
    perform refuse_epoch();
  end if;
  if not free then
    select h.position into probe_append.position from head h;
  end if;
end $$;
COMMENT ON FUNCTION headwater.probe_append(of_epoch integer, OUT free boolean, OUT "position" bigint) IS 'Says whether an append could be written now. Writes no event, waits for no lock and keeps none.';
CREATE FUNCTION headwater.refuse_change() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
begin
  raise exception 'headwater.% is append-only: % is refused', tg_table_name, lower(tg_op)
    using errcode = 'insufficient_privilege', hint = 'Append an event that says what has changed.';
end $$;
COMMENT ON FUNCTION headwater.refuse_change() IS 'Rejects UPDATE, DELETE and TRUNCATE.';
CREATE FUNCTION headwater.refuse_epoch() RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
  raise exception 'the epoch of the log that the call was made for has ended' using errcode = 'HW001';
end $$;
COMMENT ON FUNCTION headwater.refuse_epoch() IS 'Fails the append of a process that does not know the current epoch yet.';
CREATE FUNCTION headwater.server() RETURNS text
    LANGUAGE sql STABLE
    SET search_path TO 'pg_catalog', 'pg_temp'
    AS $$
  select format('%s/%s/%s/%s', (select system_identifier from pg_control_system()),
                headwater.timeline_now(),
                (select oid from pg_database where datname = current_database()),
                (select tableoid from headwater.head))
$$;
COMMENT ON FUNCTION headwater.server() IS 'The cluster''s system identifier, its timeline, and the oids of the database and of the table headwater.head: what differs after a promotion or a restore.';
CREATE FUNCTION headwater.timeline_now() RETURNS text
    LANGUAGE sql
    AS $$
  select pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8)
$$;
COMMENT ON FUNCTION headwater.timeline_now() IS 'The timeline on which PostgreSQL writes.';
CREATE TABLE headwater.claims (
    name text NOT NULL COLLATE pg_catalog."C",
    value text NOT NULL COLLATE pg_catalog."C",
    stream_id uuid NOT NULL
);
COMMENT ON TABLE headwater.claims IS 'Values that belong to one stream at a time, such as an e-mail address. An append takes and releases them together with its events.';
CREATE TABLE headwater.commands (
    command_id uuid NOT NULL,
    stream_id uuid NOT NULL,
    version integer NOT NULL,
    "position" bigint NOT NULL,
    name text COLLATE pg_catalog."C"
);
COMMENT ON TABLE headwater.commands IS 'Accepted commands that left no event. All other accepted commands are found by events_command_ordinal_key.';
COMMENT ON COLUMN headwater.commands.name IS 'The name of the command, like events.command.';
CREATE TABLE headwater.counted (
    singleton boolean DEFAULT true NOT NULL,
    "position" bigint NOT NULL,
    CONSTRAINT counted_singleton_check CHECK (singleton)
);
COMMENT ON TABLE headwater.counted IS 'One row: the position up to which headwater.kinds has counted the log.';
CREATE TABLE headwater.dead_letters (
    projection text NOT NULL COLLATE pg_catalog."C",
    generation integer NOT NULL,
    key text NOT NULL COLLATE pg_catalog."C",
    "position" bigint NOT NULL,
    parked_at timestamp with time zone DEFAULT now() NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    error text,
    traceback_hash text,
    next_attempt_at timestamp with time zone,
    discarded boolean DEFAULT false NOT NULL,
    CONSTRAINT dead_letters_attempts_check CHECK ((attempts >= 0)),
    CONSTRAINT dead_letters_error_check CHECK ((octet_length(error) <= 2048))
);
COMMENT ON TABLE headwater.dead_letters IS 'Events that a consumer failed on, and the later events of the same key, which wait behind them in order (error is null).';
COMMENT ON COLUMN headwater.dead_letters.key IS 'The text of a row''s key, or the id of a stream, a saga''s instance or an order.';
COMMENT ON COLUMN headwater.dead_letters.next_attempt_at IS 'When the key is tried again, on its first event. Null on the first event: parked until an operator acts.';
COMMENT ON COLUMN headwater.dead_letters.discarded IS 'The worker skips the event, and removes the row, with the next attempt.';
CREATE TABLE headwater.events (
    "position" bigint NOT NULL,
    stream_id uuid NOT NULL,
    version integer NOT NULL,
    ordinal smallint NOT NULL,
    schema_version smallint NOT NULL,
    event_id uuid NOT NULL,
    command_id uuid NOT NULL,
    correlation_id uuid NOT NULL,
    causation_id uuid,
    recorded_at timestamp with time zone NOT NULL,
    category text NOT NULL COLLATE pg_catalog."C",
    type text NOT NULL COLLATE pg_catalog."C",
    command text COLLATE pg_catalog."C",
    actor text,
    tenant text,
    traceparent text,
    data json NOT NULL,
    CONSTRAINT events_ordinal_check CHECK ((ordinal > 0)),
    CONSTRAINT events_schema_version_check CHECK ((schema_version > 0)),
    CONSTRAINT events_version_check CHECK ((version > 0))
);
COMMENT ON TABLE headwater.events IS 'Every event, once, never changed. No index on category or type: readers follow by position, and every append would pay for an index that is rarely read.';
COMMENT ON COLUMN headwater.events."position" IS 'The place in the log: contiguous from 1, in commit order.';
COMMENT ON COLUMN headwater.events.version IS 'The place in the stream, from 1. Its unique index is the optimistic concurrency control.';
COMMENT ON COLUMN headwater.events.ordinal IS 'The place among the events of one command, from 1. With command_id it is the idempotency key.';
COMMENT ON COLUMN headwater.events.schema_version IS 'The version of the shape of the data, declared by the event''s class.';
COMMENT ON COLUMN headwater.events.command IS 'The name of the command, so that a command id that is used again for another command is detected. Null for a record that Headwater itself writes.';
COMMENT ON COLUMN headwater.events.data IS 'json, not jsonb: stored as written, and cheaper to write and to read.';
CREATE TABLE headwater.head (
    singleton boolean DEFAULT true NOT NULL,
    "position" bigint NOT NULL,
    recorded_at timestamp with time zone NOT NULL,
    epoch integer DEFAULT 1 NOT NULL,
    timeline text COLLATE pg_catalog."C",
    made_as oid,
    CONSTRAINT head_position_check CHECK (("position" >= 0)),
    CONSTRAINT head_singleton_check CHECK (singleton)
);
COMMENT ON TABLE headwater.head IS 'One row: the end of the log. append() holds the lock of this row until it commits, so positions become visible in their own order: a reader that has seen N has seen every event up to N.';
COMMENT ON COLUMN headwater.head.recorded_at IS 'When the last event was recorded. It never decreases from one position to the next, even when the clock is set back.';
COMMENT ON COLUMN headwater.head.epoch IS 'The current epoch: see headwater.epochs.';
COMMENT ON COLUMN headwater.head.timeline IS 'The timeline of PostgreSQL on which the epoch began. On another one, append() refuses to write until a new epoch has begun. Null until the first process connects.';
COMMENT ON COLUMN headwater.head.made_as IS 'The oid of this table when the epoch began. A restored dump has another: then append() refuses in the same way.';
CREATE TABLE headwater.invariants (
    name text NOT NULL COLLATE pg_catalog."C",
    "position" bigint NOT NULL,
    violations bigint NOT NULL,
    checked_at timestamp with time zone DEFAULT now() NOT NULL
);
COMMENT ON TABLE headwater.invariants IS 'The last result of `headwater verify` for each invariant that the app declares. Nothing depends on it.';
COMMENT ON COLUMN headwater.invariants.violations IS 'The number of keys whose events up to the position contradict the invariant.';
CREATE TABLE headwater.kinds (
    category text NOT NULL COLLATE pg_catalog."C",
    type text NOT NULL COLLATE pg_catalog."C",
    schema_version smallint NOT NULL,
    count bigint NOT NULL,
    first_position bigint NOT NULL,
    last_position bigint NOT NULL
);
COMMENT ON TABLE headwater.kinds IS 'The kinds of events that the log holds, up to the position in headwater.counted. Each start checks that the app can read all of them, and counts only what was appended since. Derived: may be emptied together with counted.';
CREATE TABLE headwater.lost (
    tag text NOT NULL COLLATE pg_catalog."C",
    "position" bigint NOT NULL,
    stream_id uuid,
    version integer,
    command_id uuid,
    type text COLLATE pg_catalog."C",
    known_by text NOT NULL,
    noted_at timestamp with time zone DEFAULT now() NOT NULL
);
COMMENT ON TABLE headwater.lost IS 'Positions that processes and clients knew and that the log has lost, as far as they reported them, for `headwater lost`. tag: the epoch to which the position belongs. Only the position is known of what a client''s cursor names.';
CREATE TABLE headwater.processes (
    process_id uuid NOT NULL,
    name text NOT NULL,
    serves boolean NOT NULL,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    seen_until timestamp with time zone NOT NULL,
    report json NOT NULL
);
COMMENT ON TABLE headwater.processes IS 'What each process reports about itself every few seconds, for `headwater status`. Nothing depends on it.';
COMMENT ON COLUMN headwater.processes.process_id IS 'The worker_id of the process, where it is a worker.';
COMMENT ON COLUMN headwater.processes.seen_until IS 'The process counts as running until then, unless it reports again.';
COMMENT ON COLUMN headwater.processes.report IS 'The speed of its consumers, the verdicts on its commands, and the delay from an event to the subscribers.';
CREATE TABLE headwater.projections (
    name text NOT NULL COLLATE pg_catalog."C",
    generation integer NOT NULL,
    version integer NOT NULL,
    fingerprint text NOT NULL,
    earlier text[] DEFAULT '{}'::text[] NOT NULL,
    enums text DEFAULT '{}'::text NOT NULL,
    table_name text NOT NULL,
    state text NOT NULL COLLATE pg_catalog."C",
    "position" bigint DEFAULT 0 NOT NULL,
    rewind_to bigint,
    owner uuid,
    fence bigint DEFAULT 0 NOT NULL,
    repairs integer DEFAULT 0 NOT NULL,
    edition bigint GENERATED ALWAYS AS ((((generation)::bigint << 32) + repairs)) STORED NOT NULL,
    live_since bigint,
    forgotten bigint DEFAULT 0 NOT NULL,
    failure text,
    hindrance text,
    differences bigint,
    verified_at timestamp with time zone,
    retired_at timestamp with time zone,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT projections_generation_check CHECK ((generation > 0)),
    CONSTRAINT projections_state_check CHECK ((state = ANY (ARRAY['live'::text, 'building'::text, 'retired'::text])))
);
COMMENT ON TABLE headwater.projections IS 'The checkpoint of each consumer: read models, sagas, reactors and the schedules. The position moves by compare-and-swap in the transaction that writes the rows, which makes them exactly once.';
COMMENT ON COLUMN headwater.projections.generation IS 'The physical table of the rows. Clients read an SQL view on the live one. Always 1 for a saga or a reactor.';
COMMENT ON COLUMN headwater.projections.fingerprint IS 'Hash of the declaration: columns, enums, indexes and version; behind a point, the kinds of events that the code takes. For a saga or a reactor only the latter. A different first part means that the rows are built again, a different second part that older code must leave the unit alone.';
COMMENT ON COLUMN headwater.projections.earlier IS 'Fingerprints of older code that has run the unit and must not take it back.';
COMMENT ON COLUMN headwater.projections.enums IS 'JSON: the declared values of each enum column.';
COMMENT ON COLUMN headwater.projections.state IS 'live: clients read it. building: filled beside the live one. retired: was live, or was given up. The table of a retired generation is dropped after a time; its row stays, so that older code that starts again does not take its own declaration for a new one.';
COMMENT ON COLUMN headwater.projections.rewind_to IS 'The end of the log when it went back to before the checkpoint. Before the unit goes on, its worker undoes what is later.';
COMMENT ON COLUMN headwater.projections.owner IS 'The worker that leases the unit. It is free when this is null, or when that worker''s lease has expired.';
COMMENT ON COLUMN headwater.projections.fence IS 'The fencing token: it grows with each change of the owner, so that a paused former owner cannot commit.';
COMMENT ON COLUMN headwater.projections.repairs IS 'How often rows were changed by events that the position had passed before: dead letters that were folded later.';
COMMENT ON COLUMN headwater.projections.edition IS 'Changes whenever rows may differ though no position says so. Subscriptions then start again from the current rows.';
COMMENT ON COLUMN headwater.projections.live_since IS 'The position at which the generation went live or was last repaired. A cursor from before it refers to other rows.';
COMMENT ON COLUMN headwater.projections.forgotten IS 'Tombstones up to this position are pruned. A cursor from before it would miss removals.';
COMMENT ON COLUMN headwater.projections.failure IS 'Why the build stopped. No worker continues it; the next build starts from nothing.';
COMMENT ON COLUMN headwater.projections.hindrance IS 'What the swap waits for. It is tried again without an operator.';
COMMENT ON COLUMN headwater.projections.differences IS 'The number of differences that `headwater verify` found at verified_at.';
CREATE TABLE headwater.sagas (
    stream_id uuid NOT NULL,
    saga text NOT NULL COLLATE pg_catalog."C",
    key uuid NOT NULL,
    version integer NOT NULL,
    "position" bigint NOT NULL,
    status text NOT NULL COLLATE pg_catalog."C",
    state json NOT NULL,
    steps json NOT NULL,
    step text,
    waiting_for text,
    since timestamp with time zone NOT NULL,
    reason text,
    compensates boolean NOT NULL,
    started_at timestamp with time zone NOT NULL,
    finished_at timestamp with time zone,
    correlation_id uuid NOT NULL,
    CONSTRAINT sagas_status_check CHECK ((status = ANY (ARRAY['running'::text, 'undoing'::text, 'parked'::text, 'done'::text, 'abandoned'::text]))),
    CONSTRAINT sagas_version_check CHECK ((version >= 0))
);
COMMENT ON TABLE headwater.sagas IS 'The state of each saga instance, for operators, and for a worker that resumes them. Derived from the instances'' streams, and written together with the saga''s checkpoint.';
COMMENT ON COLUMN headwater.sagas.version IS 'The version of the instance''s stream. 0: its first event is parked, and position is the position of that event.';
COMMENT ON COLUMN headwater.sagas.step IS 'The command that the instance waits for. Null: it waits for something else.';
COMMENT ON COLUMN headwater.sagas.since IS 'When the instance last changed.';
COMMENT ON COLUMN headwater.sagas.compensates IS 'True if steps were undone, or are being undone.';
CREATE TABLE headwater.schedules (
    name text NOT NULL COLLATE pg_catalog."C",
    begun_at timestamp with time zone NOT NULL,
    fired_at timestamp with time zone,
    outcome text,
    finished_at timestamp with time zone,
    CONSTRAINT schedules_fired CHECK ((((fired_at IS NULL) = (outcome IS NULL)) AND ((fired_at IS NULL) = (finished_at IS NULL)))),
    CONSTRAINT schedules_outcome_check CHECK ((octet_length(outcome) <= 2048))
);
COMMENT ON TABLE headwater.schedules IS 'One row for each schedule that a worker has ever seen. It changes under the lease of the unit `schedules`. The row of a schedule that is no longer declared stays; the schedule continues from it when it is declared again.';
COMMENT ON COLUMN headwater.schedules.begun_at IS 'When a worker first saw the schedule. Moments that were due before are not fired.';
COMMENT ON COLUMN headwater.schedules.fired_at IS 'The last due moment that was fired; not the time at which it was fired.';
COMMENT ON COLUMN headwater.schedules.outcome IS 'Its result: accepted, the code of a refusal, or the error that the schedule''s code raised.';
COMMENT ON COLUMN headwater.schedules.finished_at IS 'When the outcome was known.';
CREATE TABLE headwater.schema_version (
    version_num character varying(32) NOT NULL
);
CREATE TABLE headwater.snapshots (
    stream_id uuid NOT NULL,
    fold_version integer NOT NULL,
    version integer NOT NULL,
    event_id uuid NOT NULL,
    taken_at timestamp with time zone DEFAULT now() NOT NULL,
    shape text NOT NULL,
    seal text NOT NULL,
    state json NOT NULL,
    CONSTRAINT snapshots_version_check CHECK ((version > 0))
);
COMMENT ON TABLE headwater.snapshots IS 'States of long streams, so that a decision need not read the stream from its start. Derived: any row may be deleted at any time.';
COMMENT ON COLUMN headwater.snapshots.fold_version IS 'The fold_version of the decider. A decider with another one ignores the row.';
COMMENT ON COLUMN headwater.snapshots.event_id IS 'The event of that version. A row whose stream has another event there, or none, is ignored.';
COMMENT ON COLUMN headwater.snapshots.shape IS 'Hash of the fields of the state. Code with other fields ignores the row.';
COMMENT ON COLUMN headwater.snapshots.seal IS 'Hash of the row as it was written. A row that was changed is ignored.';
CREATE TABLE headwater.timers (
    stream_id uuid NOT NULL,
    message text NOT NULL COLLATE pg_catalog."C",
    saga text NOT NULL COLLATE pg_catalog."C",
    due_at timestamp with time zone NOT NULL
);
COMMENT ON TABLE headwater.timers IS 'Messages that saga instances send to themselves later. Derived from the instances'' streams, which decide when they differ.';
CREATE TABLE headwater.tombstones (
    projection text NOT NULL COLLATE pg_catalog."C",
    generation integer NOT NULL,
    key text NOT NULL COLLATE pg_catalog."C",
    "position" bigint NOT NULL,
    removed_at timestamp with time zone DEFAULT now() NOT NULL
);
COMMENT ON TABLE headwater.tombstones IS 'Removed rows, so that a subscriber that was away learns of their removal.';
COMMENT ON COLUMN headwater.tombstones.key IS 'The text of the row''s key.';
CREATE TABLE headwater.workers (
    worker_id uuid NOT NULL,
    name text NOT NULL,
    runs text[] NOT NULL COLLATE pg_catalog."C",
    lease_until timestamp with time zone NOT NULL,
    started_at timestamp with time zone DEFAULT now() NOT NULL
);
COMMENT ON TABLE headwater.workers IS 'One row, and one heartbeat, for each process that runs consumers, however many it runs.';
COMMENT ON COLUMN headwater.workers.runs IS 'The units that the worker''s code can run: name and fingerprint of each. Old and new code share out only their own.';
ALTER TABLE ONLY headwater.claims
    ADD CONSTRAINT claims_pkey PRIMARY KEY (name, value);
ALTER TABLE ONLY headwater.commands
    ADD CONSTRAINT commands_pkey PRIMARY KEY (command_id);
ALTER TABLE ONLY headwater.counted
    ADD CONSTRAINT counted_pkey PRIMARY KEY (singleton);
ALTER TABLE ONLY headwater.dead_letters
    ADD CONSTRAINT dead_letters_pkey PRIMARY KEY (projection, generation, key, "position");
ALTER TABLE ONLY headwater.epochs
    ADD CONSTRAINT epochs_pkey PRIMARY KEY (epoch);
ALTER TABLE ONLY headwater.epochs
    ADD CONSTRAINT epochs_tag_key UNIQUE (tag);
ALTER TABLE ONLY headwater.events
    ADD CONSTRAINT events_command_ordinal_key UNIQUE (command_id, ordinal);
ALTER TABLE ONLY headwater.events
    ADD CONSTRAINT events_pkey PRIMARY KEY ("position");
ALTER TABLE ONLY headwater.events
    ADD CONSTRAINT events_stream_version_key UNIQUE (stream_id, version);
ALTER TABLE ONLY headwater.head
    ADD CONSTRAINT head_pkey PRIMARY KEY (singleton);
ALTER TABLE ONLY headwater.invariants
    ADD CONSTRAINT invariants_pkey PRIMARY KEY (name);
ALTER TABLE ONLY headwater.kinds
    ADD CONSTRAINT kinds_pkey PRIMARY KEY (category, type, schema_version);
ALTER TABLE ONLY headwater.lost
    ADD CONSTRAINT lost_pkey PRIMARY KEY (tag, "position");
ALTER TABLE ONLY headwater.processes
    ADD CONSTRAINT processes_pkey PRIMARY KEY (process_id);
ALTER TABLE ONLY headwater.projections
    ADD CONSTRAINT projections_pkey PRIMARY KEY (name, generation);
ALTER TABLE ONLY headwater.sagas
    ADD CONSTRAINT sagas_key_saga_key UNIQUE (key, saga);
ALTER TABLE ONLY headwater.sagas
    ADD CONSTRAINT sagas_pkey PRIMARY KEY (stream_id);
ALTER TABLE ONLY headwater.schedules
    ADD CONSTRAINT schedules_pkey PRIMARY KEY (name);
ALTER TABLE ONLY headwater.schema_version
    ADD CONSTRAINT schema_version_pkc PRIMARY KEY (version_num);
ALTER TABLE ONLY headwater.snapshots
    ADD CONSTRAINT snapshots_pkey PRIMARY KEY (stream_id, fold_version);
ALTER TABLE ONLY headwater.timers
    ADD CONSTRAINT timers_pkey PRIMARY KEY (stream_id, message);
ALTER TABLE ONLY headwater.tombstones
    ADD CONSTRAINT tombstones_pkey PRIMARY KEY (projection, generation, key);
ALTER TABLE ONLY headwater.workers
    ADD CONSTRAINT workers_pkey PRIMARY KEY (worker_id);
CREATE INDEX claims_stream ON headwater.claims USING btree (stream_id);
CREATE INDEX dead_letters_due ON headwater.dead_letters USING btree (projection, generation, next_attempt_at) WHERE (next_attempt_at IS NOT NULL);
CREATE INDEX dead_letters_failed ON headwater.dead_letters USING btree (projection, generation) WHERE (error IS NOT NULL);
CREATE INDEX events_correlation ON headwater.events USING btree (correlation_id, "position") WHERE (correlation_id <> command_id);
CREATE UNIQUE INDEX projections_live ON headwater.projections USING btree (name) WHERE (state = 'live'::text);
CREATE INDEX sagas_open ON headwater.sagas USING btree (saga, status, since) WHERE (status = ANY (ARRAY['running'::text, 'undoing'::text, 'parked'::text]));
CREATE INDEX sagas_since ON headwater.sagas USING btree (since);
CREATE INDEX timers_due ON headwater.timers USING btree (saga, due_at, stream_id);
CREATE INDEX tombstones_position ON headwater.tombstones USING btree (projection, generation, "position");
CREATE TRIGGER append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON headwater.events FOR EACH STATEMENT EXECUTE FUNCTION headwater.refuse_change();
ALTER TABLE headwater.events ENABLE ALWAYS TRIGGER append_only;
ALTER TABLE ONLY headwater.dead_letters
    ADD CONSTRAINT dead_letters_projection_fkey FOREIGN KEY (projection, generation) REFERENCES headwater.projections(name, generation) ON DELETE CASCADE;
ALTER TABLE ONLY headwater.tombstones
    ADD CONSTRAINT tombstones_projection_fkey FOREIGN KEY (projection, generation) REFERENCES headwater.projections(name, generation) ON DELETE CASCADE;
