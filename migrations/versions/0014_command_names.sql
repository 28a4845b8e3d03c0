-- The log keeps the name of each event's command, and that of a command without events: so a command id that is used again
-- for another command is found out, where its stream alone would not tell, and a trace shows what was asked for.
--
-- Both functions that append are those of 0005 and 0007 again, with the names. Code of before still calls them as they were
-- while it runs: so called they go on to the new ones, without names, until a later migration takes that away.
alter table headwater.events add column command text collate "C";
comment on column headwater.events.command is
  'The name of the command that it came of. Null: it was written by code of before, or is a record of Headwater''s own.';
alter table headwater.commands add column name text collate "C";
comment on column headwater.commands.name is 'The command''s; null when it was written by code of before.';

create function headwater.append(
  command_ids uuid[], names text[], stream_ids uuid[], expected integer[], counts integer[],
  kind_categories text[], kind_types text[], kind_versions smallint[], kinds integer[], payloads text[],
  correlation_ids uuid[], causation_ids uuid[], actors text[], tenants text[], traceparents text[],
  claim_commands integer[], claim_takes boolean[], claim_names text[], claim_values text[],
  out verdicts "char"[], out versions integer[], out positions bigint[], out streams uuid[], out blockers integer[]
) language plpgsql volatile
  -- A plan that compiles, or looks for tables elsewhere, would cost more than it does.
  set jit = off
  set plan_cache_mode = force_generic_plan
  set search_path = headwater, pg_temp
as $$
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
comment on function headwater.append(
  uuid[], text[], uuid[], integer[], integer[], text[], text[], smallint[], integer[], text[], uuid[], uuid[], text[], text[],
  text[], integer[], boolean[], text[], text[]
) is
  'Appends many commands'' events in one call: contiguous positions, a verdict for each command, one doorbell.';

create function headwater.append_plain(
  command_ids uuid[], names text[], stream_ids uuid[], expected integer[], behind boolean[],
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
comment on function headwater.append_plain(
  uuid[], text[], uuid[], integer[], boolean[], text[], text[], smallint[], integer[], text[], uuid[], uuid[], text[], text[],
  text[]
) is
  'Appends a batch of one-event commands as a whole, or nothing of it; append() is for all others, and for those who lose.';

create or replace function headwater.append(
  command_ids uuid[], stream_ids uuid[], expected integer[], counts integer[],
  kind_categories text[], kind_types text[], kind_versions smallint[], kinds integer[], payloads text[],
  correlation_ids uuid[], causation_ids uuid[], actors text[], tenants text[], traceparents text[],
  claim_commands integer[], claim_takes boolean[], claim_names text[], claim_values text[],
  out verdicts "char"[], out versions integer[], out positions bigint[], out streams uuid[], out blockers integer[]
) language sql volatile as $$
  select * from headwater.append($1, null, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18)
$$;
comment on function headwater.append(
  uuid[], uuid[], integer[], integer[], text[], text[], smallint[], integer[], text[], uuid[], uuid[], text[], text[], text[],
  integer[], boolean[], text[], text[]
) is
  'As code of before calls it, without the names of commands.';

create or replace function headwater.append_plain(
  command_ids uuid[], stream_ids uuid[], expected integer[], behind boolean[],
  kind_categories text[], kind_types text[], kind_versions smallint[], kinds integer[], payloads text[],
  correlation_ids uuid[], causation_ids uuid[], actors text[], tenants text[], traceparents text[]
) returns bigint language sql volatile as $$
  select headwater.append_plain($1, null, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
$$;
comment on function headwater.append_plain(
  uuid[], uuid[], integer[], boolean[], text[], text[], smallint[], integer[], text[], uuid[], uuid[], text[], text[], text[]
) is
  'As code of before calls it, without the names of commands.';
