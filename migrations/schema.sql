CREATE SCHEMA headwater;
COMMENT ON SCHEMA headwater IS 'Headwater''s own tables: the log, and what is kept beside it.';
CREATE FUNCTION headwater.append(command_ids uuid[], stream_ids uuid[], expected integer[], counts integer[], kind_categories text[], kind_types text[], kind_versions smallint[], kinds integer[], payloads text[], correlation_ids uuid[], causation_ids uuid[], actors text[], tenants text[], traceparents text[], claim_commands integer[], claim_takes boolean[], claim_names text[], claim_values text[], OUT verdicts "char"[], OUT versions integer[], OUT positions bigint[], OUT streams uuid[], OUT blockers integer[]) RETURNS record
    LANGUAGE sql
    AS $_$
  select * from headwater.append($1, null, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)
$_$;
COMMENT ON FUNCTION headwater.append(command_ids uuid[], stream_ids uuid[], expected integer[], counts integer[], kind_categories text[], kind_types text[], kind_versions smallint[], kinds integer[], payloads text[], correlation_ids uuid[], causation_ids uuid[], actors text[], tenants text[], traceparents text[], claim_commands integer[], claim_takes boolean[], claim_names text[], claim_values text[], OUT verdicts "char"[], OUT versions integer[], OUT positions bigint[], OUT streams uuid[], OUT blockers integer[]) IS 'As code of before calls it, without the names of commands.';
CREATE FUNCTION headwater.append(command_ids uuid[], names text[], stream_ids uuid[], expected integer[], counts integer[], kind_categories text[], kind_types text[], kind_versions smallint[], kinds integer[], payloads text[], correlation_ids uuid[], causation_ids uuid[], actors text[], tenants text[], traceparents text[], claim_commands integer[], claim_takes boolean[], claim_names text[], claim_values text[], OUT verdicts "char"[], OUT versions integer[], OUT positions bigint[], OUT streams uuid[], OUT blockers integer[]) RETURNS record
    LANGUAGE plpgsql
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    SET search_path TO 'headwater', 'pg_temp'
    AS $$
<<here>>
declare
  base bigint;
  moment timestamptz;
  behind boolean[];
  places integer[];
  ordinals integer[];
  any_without_events boolean;
  appended integer;
begin
  -- Everything below sees what every earlier append has left, since each waits here for the one before it.
  select position, greatest(recorded_at, clock_timestamp()) into strict base, moment from head for update;
  any_without_events := exists (select from commands);
  if cardinality(claim_commands) > 0
     or (select count(distinct id) from unnest(command_ids) as id) < cardinality(command_ids) then
    -- The first command of a call to name a claim or a command id goes on; the others are behind it. A command that takes
    -- what another stream holds has the first such claim for its blocker. One pass over the commands and one over the
    -- claims, brought together by grouping: a join of the two is planned for ten of each, and would compare all with all.
    select array_agg(j.behind order by j.command), array_agg(j.blocker order by j.command)
      into behind, blockers
      from (
        select said.command, bool_or(said.behind) as behind, min(said.blocker) as blocker
          from (
            select u.place as command, u.place > min(u.place) over (partition by u.command_id) as behind,
                   null::integer as blocker
              from unnest(command_ids) with ordinality as u(command_id, place)
             union all
            select k.command, k.command > min(k.command) over (partition by k.name, k.value),
                   case when k.take and held.stream_id <> stream_ids[k.command] then k.place::integer end
              from (
                select command, take, name collate "C" as name, value collate "C" as value, place
                  from unnest(claim_commands, claim_takes, claim_names, claim_values) with ordinality
                    as k(command, take, name, value, place)
              ) k
              left join lateral (
                select c.stream_id from claims c where c.name = k.name and c.value = k.value limit 1
              ) held on true
          ) said
         group by said.command
      ) j;
  end if;
  -- Each command is judged as if those before it in its stream were accepted, and falls with the first that is not.
  -- LEFT JOIN LATERAL ... LIMIT 1 holds the plan to index look-ups, however long the log is.
  select array_agg(v.verdict), array_agg(v.version), array_agg(base + v.reached), array_agg(v.stream_id)
    into verdicts, versions, positions, streams
    from (
      select case when w.done then 'd' when w.behind or not w.clear then 'b' when w.wrong then 'c'
                  when w.taken then 't' else 'a' end::"char" as verdict,
             case when w.done then w.done_version when w.clear and w.ok then w.actual + w.n else w.actual end as version,
             case when w.done then w.done_position - base
                  else coalesce(sum(w.n) filter (where w.clear and w.ok) over (order by w.place), 0) end as reached,
             case when w.done then w.done_stream else w.stream_id end as stream_id
        from (
          select j.*,
                 coalesce(bool_and(j.ok) over (
                   partition by j.stream_id order by j.place rows between unbounded preceding and 1 preceding), true)
                   as clear
            from (
              select c.place, c.stream_id, c.n, s.actual, d.*, b.*,
                     not d.done and not b.behind and not b.wrong and not b.taken as ok
                from (
                  select u.place, u.command_id, u.stream_id, u.expected, coalesce(u.n, 1) as n,
                         (sum(coalesce(u.n, 1)) over (partition by u.stream_id order by u.place rows unbounded preceding)
                          - coalesce(u.n, 1))::integer as before
                    from unnest(command_ids, stream_ids, expected, counts) with ordinality
                      as u(command_id, stream_id, expected, n, place)
                ) c
                -- The stream stands at the expected version when that one is there and the next is not: two points of
                -- the index, where its end would be a page of them on a long stream. The end is sought when it does not.
                left join lateral (
                  select true as there from events e
                   where e.stream_id = c.stream_id and e.version = c.expected - c.before limit 1
                ) it on c.expected > c.before
                left join lateral (
                  select true as there from events e
                   where e.stream_id = c.stream_id and e.version = c.expected - c.before + 1 limit 1
                ) next on true
                cross join lateral (
                  select coalesce(c.expected >= c.before and (c.expected = c.before or it.there) and next.there is null,
                                  false) as fits
                ) f
                left join lateral (
                  select e.version from events e
                   where not f.fits and e.stream_id = c.stream_id order by e.version desc limit 1
                ) last on true
                left join lateral (
                  select e.version, e.position, e.stream_id from events e
                   where e.command_id = c.command_id order by e.ordinal desc limit 1
                ) left_events on true
                left join lateral (
                  select q.version, q.position, q.stream_id from commands q
                   where here.any_without_events and q.command_id = c.command_id limit 1
                ) left_none on true
                cross join lateral (select case when f.fits then c.expected else coalesce(last.version, 0) + c.before end as actual) s
                cross join lateral (
                  select coalesce(left_events.position, left_none.position) is not null as done,
                         coalesce(left_events.version, left_none.version) as done_version,
                         coalesce(left_events.position, left_none.position) as done_position,
                         coalesce(left_events.stream_id, left_none.stream_id) as done_stream
                ) d
                cross join lateral (
                  select coalesce(here.behind[c.place], false) as behind,
                         c.expected is not null and not f.fits as wrong,
                         append.blockers[c.place] is not null as taken
                ) b
            ) j
        ) w
       order by w.place
    ) v;
  if counts is not null then
    select array_agg(u.place order by u.place, o), array_agg(o order by u.place, o) into places, ordinals
      from unnest(counts) with ordinality as u(n, place), generate_series(1, u.n) as o;
  end if;
  insert into events (position, stream_id, version, ordinal, schema_version, event_id, command_id, correlation_id,
                      causation_id, recorded_at, category, type, actor, tenant, traceparent, data, command)
  select positions[e.place] - e.n + e.ordinal, stream_ids[e.place], versions[e.place] - e.n + e.ordinal, e.ordinal,
         kind_versions[e.kind], uuidv7(), command_ids[e.place],
         coalesce(correlation_ids[e.place], command_ids[e.place]), causation_ids[e.place], moment,
         kind_categories[e.kind], kind_types[e.kind], actors[e.place], tenants[e.place], traceparents[e.place],
         e.payload::json, names[e.place]
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
  if cardinality(claim_commands) > 0 then
    -- Of all that a command says of one claim, the last word holds.
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
    -- Its own stream may hold it already; another stream's would have been verdict t.
    on conflict (name, value) do nothing;
  end if;
  if appended > 0 then
    update head set position = base + appended, recorded_at = moment;
    perform pg_notify('headwater', 'log:' || base + appended);
  end if;
end $$;
COMMENT ON FUNCTION headwater.append(command_ids uuid[], names text[], stream_ids uuid[], expected integer[], counts integer[], kind_categories text[], kind_types text[], kind_versions smallint[], kinds integer[], payloads text[], correlation_ids uuid[], causation_ids uuid[], actors text[], tenants text[], traceparents text[], claim_commands integer[], claim_takes boolean[], claim_names text[], claim_values text[], OUT verdicts "char"[], OUT versions integer[], OUT positions bigint[], OUT streams uuid[], OUT blockers integer[]) IS 'Appends many commands'' events in one call: contiguous positions, a verdict for each command, one doorbell.';
CREATE FUNCTION headwater.append_plain(command_ids uuid[], stream_ids uuid[], expected integer[], behind boolean[], kind_categories text[], kind_types text[], kind_versions smallint[], kinds integer[], payloads text[], correlation_ids uuid[], causation_ids uuid[], actors text[], tenants text[], traceparents text[]) RETURNS bigint
    LANGUAGE sql
    AS $_$
  select headwater.append_plain($1, null, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
$_$;
COMMENT ON FUNCTION headwater.append_plain(command_ids uuid[], stream_ids uuid[], expected integer[], behind boolean[], kind_categories text[], kind_types text[], kind_versions smallint[], kinds integer[], payloads text[], correlation_ids uuid[], causation_ids uuid[], actors text[], tenants text[], traceparents text[]) IS 'As code of before calls it, without the names of commands.';
CREATE FUNCTION headwater.append_plain(command_ids uuid[], names text[], stream_ids uuid[], expected integer[], behind boolean[], kind_categories text[], kind_types text[], kind_versions smallint[], kinds integer[], payloads text[], correlation_ids uuid[], causation_ids uuid[], actors text[], tenants text[], traceparents text[]) RETURNS bigint
    LANGUAGE plpgsql
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    SET search_path TO 'headwater', 'pg_temp'
    AS $$
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
                      causation_id, recorded_at, category, type, actor, tenant, traceparent, data, command)
  select base + u.place, u.stream_id, u.expected + 1, 1, kind_versions[coalesce(u.kind, 1)],
         (left(seed, 16) || to_hex(tail + u.place))::uuid, u.command_id,
         coalesce(u.correlation_id, u.command_id), u.causation_id, moment,
         kind_categories[coalesce(u.kind, 1)], kind_types[coalesce(u.kind, 1)], u.actor, u.tenant, u.traceparent,
         u.payload::json, u.name
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
  when unique_violation then  -- as if nothing had been called: position, events and ring are undone
    return null;
end $$;
COMMENT ON FUNCTION headwater.append_plain(command_ids uuid[], names text[], stream_ids uuid[], expected integer[], behind boolean[], kind_categories text[], kind_types text[], kind_versions smallint[], kinds integer[], payloads text[], correlation_ids uuid[], causation_ids uuid[], actors text[], tenants text[], traceparents text[]) IS 'Appends a batch of one-event commands as a whole, or nothing of it; append() is for all others, and for those who lose.';
CREATE FUNCTION headwater.refuse_change() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
begin
  raise exception 'headwater.% is append-only: % is refused', tg_table_name, lower(tg_op)
    using errcode = 'insufficient_privilege', hint = 'Append an event that says what has changed.';
end $$;
CREATE TABLE headwater.claims (
    name text NOT NULL COLLATE pg_catalog."C",
    value text NOT NULL COLLATE pg_catalog."C",
    stream_id uuid NOT NULL
);
COMMENT ON TABLE headwater.claims IS 'Values that belong to one stream at a time, such as an e-mail address. Taken and released in the append of the events that say so.';
CREATE TABLE headwater.commands (
    command_id uuid NOT NULL,
    stream_id uuid NOT NULL,
    version integer NOT NULL,
    "position" bigint NOT NULL,
    name text COLLATE pg_catalog."C"
);
COMMENT ON TABLE headwater.commands IS 'Accepted commands that left no event; those that did are found by events_command_ordinal_key.';
COMMENT ON COLUMN headwater.commands.name IS 'The command''s; null when it was written by code of before.';
CREATE TABLE headwater.counted (
    singleton boolean DEFAULT true NOT NULL,
    "position" bigint NOT NULL,
    CONSTRAINT counted_singleton_check CHECK (singleton)
);
COMMENT ON TABLE headwater.counted IS 'One row: how far headwater.kinds has counted the log.';
CREATE TABLE headwater.dead_letters (
    projection text NOT NULL COLLATE pg_catalog."C",
    generation integer NOT NULL,
    key uuid NOT NULL,
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
COMMENT ON TABLE headwater.dead_letters IS 'Events that a fold failed on, and those of the same key that wait behind them, in order (error is null).';
COMMENT ON COLUMN headwater.dead_letters.next_attempt_at IS 'When the key is tried again, on its first letter; null there means parked until a person acts.';
COMMENT ON COLUMN headwater.dead_letters.discarded IS 'The worker passes over it, and removes it, with the next attempt.';
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
    actor text,
    tenant text,
    traceparent text,
    data json NOT NULL,
    command text COLLATE pg_catalog."C",
    CONSTRAINT events_ordinal_check CHECK ((ordinal > 0)),
    CONSTRAINT events_schema_version_check CHECK ((schema_version > 0)),
    CONSTRAINT events_version_check CHECK ((version > 0))
);
COMMENT ON TABLE headwater.events IS 'Every fact, once, for ever. There is no index on category or type: readers follow by position, and an index that is rarely read would be paid for by every append.';
COMMENT ON COLUMN headwater.events."position" IS 'Contiguous from 1, in commit order.';
COMMENT ON COLUMN headwater.events.version IS 'The event''s place in its stream, from 1: optimistic concurrency.';
COMMENT ON COLUMN headwater.events.ordinal IS 'The event''s place in its command, from 1: with command_id it is the idempotency key, and finds a command''s last event.';
COMMENT ON COLUMN headwater.events.data IS 'json, not jsonb: kept as it was written, and cheaper both to write and to read.';
COMMENT ON COLUMN headwater.events.command IS 'The name of the command that it came of. Null: it was written by code of before, or is a record of Headwater''s own.';
CREATE TABLE headwater.head (
    singleton boolean DEFAULT true NOT NULL,
    "position" bigint NOT NULL,
    recorded_at timestamp with time zone NOT NULL,
    CONSTRAINT head_position_check CHECK (("position" >= 0)),
    CONSTRAINT head_singleton_check CHECK (singleton)
);
COMMENT ON TABLE headwater.head IS 'One row: where the log ends. append() holds its lock to the commit, so positions become visible in their own order: whoever has seen N has seen everything up to N.';
COMMENT ON COLUMN headwater.head.recorded_at IS 'When the last event was recorded; time never goes back from one position to the next, even when a clock does.';
CREATE TABLE headwater.kinds (
    category text NOT NULL COLLATE pg_catalog."C",
    type text NOT NULL COLLATE pg_catalog."C",
    schema_version smallint NOT NULL,
    count bigint NOT NULL,
    first_position bigint NOT NULL,
    last_position bigint NOT NULL
);
COMMENT ON TABLE headwater.kinds IS 'What kinds of events the log holds, as far as headwater.counted says: whether the code reads all of them is asked at each start, and each time only the new end of the log is counted. Derived: may be emptied together with counted.';
CREATE TABLE headwater.processes (
    process_id uuid NOT NULL,
    name text NOT NULL,
    serves boolean NOT NULL,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    seen_until timestamp with time zone NOT NULL,
    report json NOT NULL
);
COMMENT ON TABLE headwater.processes IS 'What each process tells of itself every few seconds, for `headwater status`. Nothing depends on it.';
COMMENT ON COLUMN headwater.processes.process_id IS 'That of its row among the workers, where it keeps projections.';
COMMENT ON COLUMN headwater.processes.seen_until IS 'Until when it counts as running, unless it tells something more.';
COMMENT ON COLUMN headwater.processes.report IS 'How what it keeps gets on, what became of the commands that it sent to the log, and how soon subscribers had changes.';
CREATE TABLE headwater.projections (
    name text NOT NULL COLLATE pg_catalog."C",
    generation integer NOT NULL,
    version integer NOT NULL,
    fingerprint text NOT NULL,
    table_name text NOT NULL,
    "position" bigint DEFAULT 0 NOT NULL,
    state text NOT NULL COLLATE pg_catalog."C",
    repairs integer DEFAULT 0 NOT NULL,
    edition bigint GENERATED ALWAYS AS ((((generation)::bigint << 32) + repairs)) STORED NOT NULL,
    live_since bigint,
    retired_at timestamp with time zone,
    failure text,
    verified_at timestamp with time zone,
    differences bigint,
    owner uuid,
    fence bigint DEFAULT 0 NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    forgotten bigint DEFAULT 0 NOT NULL,
    enums text DEFAULT '{}'::text NOT NULL,
    earlier text[] DEFAULT '{}'::text[] NOT NULL,
    hindrance text,
    CONSTRAINT projections_generation_check CHECK ((generation > 0)),
    CONSTRAINT projections_state_check CHECK ((state = ANY (ARRAY['live'::text, 'building'::text, 'retired'::text])))
);
COMMENT ON TABLE headwater.projections IS 'How far each projection has come. The position moves by compare-and-swap in the transaction that writes the rows: that is what makes them exactly once.';
COMMENT ON COLUMN headwater.projections.generation IS 'The physical table of the rows; clients read a view on the live one.';
COMMENT ON COLUMN headwater.projections.fingerprint IS 'Of what is declared: columns, the values of their enums, indexes and version, and after a point the kinds of events that are taken. Of a saga or a reactor only the latter. Another means that the rows are made again, or that older code must leave it.';
COMMENT ON COLUMN headwater.projections.state IS 'live: clients read it. building: made beside the live one. retired: was live, or was given up; its table is dropped after a time, the row stays, so that older code that starts again does not take its own declaration for a new one.';
COMMENT ON COLUMN headwater.projections.repairs IS 'How often rows were changed by events that the position had passed long before: dead letters that were folded after all.';
COMMENT ON COLUMN headwater.projections.edition IS 'Another one means that rows may differ though no position says so: readers start again from a snapshot.';
COMMENT ON COLUMN headwater.projections.live_since IS 'The position at which it took the place of another, or was last repaired: cursors from up to there are of other rows.';
COMMENT ON COLUMN headwater.projections.failure IS 'Why it is not built: nobody goes on with it, and what is begun in its place starts from nothing.';
COMMENT ON COLUMN headwater.projections.differences IS 'Found by `headwater verify` at verified_at.';
COMMENT ON COLUMN headwater.projections.owner IS 'The worker that leases it. It is free when there is none, or when that worker''s own lease has run out.';
COMMENT ON COLUMN headwater.projections.fence IS 'Rises with each lease, so that a holder that slept cannot commit.';
COMMENT ON COLUMN headwater.projections.forgotten IS 'Up to here removals are forgotten, their tombstones pruned: a cursor from before it misses some of them.';
COMMENT ON COLUMN headwater.projections.enums IS 'JSON: the values that each column of an enum may hold, as declared.';
COMMENT ON COLUMN headwater.projections.earlier IS 'Fingerprints of code that has kept it before, had enums of fewer values or took other kinds of events, and must leave it.';
COMMENT ON COLUMN headwater.projections.hindrance IS 'What is in the way of its swap, which is tried again by itself.';
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
COMMENT ON TABLE headwater.sagas IS 'Each instance of each saga as its stream tells it, for operators, and for a worker to know which to take up. Derived: written with the checkpoint of the saga, from the records that the checkpoint passes.';
COMMENT ON COLUMN headwater.sagas.version IS 'Of its stream. 0: it has not begun, since its first event is set aside; then position is that of the event.';
COMMENT ON COLUMN headwater.sagas.step IS 'The command that it waits for; null when it waits for something else.';
COMMENT ON COLUMN headwater.sagas.since IS 'When the last thing happened to it.';
COMMENT ON COLUMN headwater.sagas.compensates IS 'Whether steps of it were, or are being, undone.';
CREATE TABLE headwater.schedules (
    name text NOT NULL COLLATE pg_catalog."C",
    begun_at timestamp with time zone NOT NULL,
    fired_at timestamp with time zone,
    outcome text,
    finished_at timestamp with time zone,
    CONSTRAINT schedules_fired CHECK ((((fired_at IS NULL) = (outcome IS NULL)) AND ((fired_at IS NULL) = (finished_at IS NULL)))),
    CONSTRAINT schedules_outcome_check CHECK ((octet_length(outcome) <= 2048))
);
COMMENT ON TABLE headwater.schedules IS 'One row for each schedule that a worker has ever seen. It moves under the lease that stands in projections under the name schedules; the row of a schedule that is no longer declared stays, and goes on when it is declared again.';
COMMENT ON COLUMN headwater.schedules.begun_at IS 'When a worker first saw it: what was due before is not fired.';
COMMENT ON COLUMN headwater.schedules.fired_at IS 'The last due moment that was fired, not the time at which it was.';
COMMENT ON COLUMN headwater.schedules.outcome IS 'What it came to: accepted, the code of a refusal, or what the schedule''s code raised, and where.';
COMMENT ON COLUMN headwater.schedules.finished_at IS 'When the outcome was known.';
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
COMMENT ON TABLE headwater.snapshots IS 'States of long streams, to go on from instead of the start. Derived: any may be deleted at any time.';
COMMENT ON COLUMN headwater.snapshots.fold_version IS 'Of the decider that took it; one of another is not used.';
COMMENT ON COLUMN headwater.snapshots.event_id IS 'The event of that version that it stands after; when the stream has another there, or none, it is not used.';
COMMENT ON COLUMN headwater.snapshots.shape IS 'Of the state''s fields: a code with others does not use it.';
COMMENT ON COLUMN headwater.snapshots.seal IS 'Of the row as it was written: a row that was changed is not used.';
CREATE TABLE headwater.subject_keys (
    subject_id uuid NOT NULL,
    key bytea,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    forgotten_at timestamp with time zone,
    CONSTRAINT subject_keys_forgotten CHECK (((key IS NULL) = (forgotten_at IS NOT NULL)))
);
COMMENT ON TABLE headwater.subject_keys IS 'The key that a person''s fields are encrypted with; forgetting the person is dropping the key, never an event.';
CREATE TABLE headwater.timers (
    stream_id uuid NOT NULL,
    message text NOT NULL COLLATE pg_catalog."C",
    saga text NOT NULL COLLATE pg_catalog."C",
    due_at timestamp with time zone NOT NULL
);
COMMENT ON TABLE headwater.timers IS 'Messages that fall due, derived from the streams of sagas, which have the last word.';
CREATE TABLE headwater.tombstones (
    projection text NOT NULL COLLATE pg_catalog."C",
    generation integer NOT NULL,
    key uuid NOT NULL,
    "position" bigint NOT NULL,
    removed_at timestamp with time zone DEFAULT now() NOT NULL
);
COMMENT ON TABLE headwater.tombstones IS 'Removed rows, so that a client that was away learns of them.';
CREATE TABLE headwater.workers (
    worker_id uuid NOT NULL,
    name text NOT NULL,
    runs text[] NOT NULL COLLATE pg_catalog."C",
    lease_until timestamp with time zone NOT NULL,
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    paces json DEFAULT '{}'::json NOT NULL
);
COMMENT ON TABLE headwater.workers IS 'One row, and one heartbeat, for each process that keeps projections, however many it keeps.';
COMMENT ON COLUMN headwater.workers.runs IS 'What its code can keep: name and fingerprint of each read model, so that old and new code share out only what is theirs.';
COMMENT ON COLUMN headwater.workers.paces IS 'Not used any more: `processes.report` has it. It stays for workers that still run code from before.';
ALTER TABLE ONLY headwater.claims
    ADD CONSTRAINT claims_pkey PRIMARY KEY (name, value);
ALTER TABLE ONLY headwater.commands
    ADD CONSTRAINT commands_pkey PRIMARY KEY (command_id);
ALTER TABLE ONLY headwater.counted
    ADD CONSTRAINT counted_pkey PRIMARY KEY (singleton);
ALTER TABLE ONLY headwater.dead_letters
    ADD CONSTRAINT dead_letters_pkey PRIMARY KEY (projection, generation, key, "position");
ALTER TABLE ONLY headwater.events
    ADD CONSTRAINT events_command_ordinal_key UNIQUE (command_id, ordinal);
ALTER TABLE ONLY headwater.events
    ADD CONSTRAINT events_pkey PRIMARY KEY ("position");
ALTER TABLE ONLY headwater.events
    ADD CONSTRAINT events_stream_version_key UNIQUE (stream_id, version);
ALTER TABLE ONLY headwater.head
    ADD CONSTRAINT head_pkey PRIMARY KEY (singleton);
ALTER TABLE ONLY headwater.kinds
    ADD CONSTRAINT kinds_pkey PRIMARY KEY (category, type, schema_version);
ALTER TABLE ONLY headwater.processes
    ADD CONSTRAINT processes_pkey PRIMARY KEY (process_id);
ALTER TABLE ONLY headwater.projections
    ADD CONSTRAINT projections_pkey PRIMARY KEY (name, generation);
ALTER TABLE ONLY headwater.sagas
    ADD CONSTRAINT sagas_pkey PRIMARY KEY (stream_id);
ALTER TABLE ONLY headwater.sagas
    ADD CONSTRAINT sagas_saga_key_key UNIQUE (saga, key);
ALTER TABLE ONLY headwater.schedules
    ADD CONSTRAINT schedules_pkey PRIMARY KEY (name);
ALTER TABLE ONLY headwater.snapshots
    ADD CONSTRAINT snapshots_pkey PRIMARY KEY (stream_id, fold_version);
ALTER TABLE ONLY headwater.subject_keys
    ADD CONSTRAINT subject_keys_pkey PRIMARY KEY (subject_id);
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
