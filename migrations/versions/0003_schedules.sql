-- Which due moments of which schedule are dealt with. What is due follows from the code's own declarations.
create table headwater.schedules (
  name text collate "C" primary key,
  begun_at timestamptz not null,
  fired_at timestamptz,
  outcome text check (octet_length(outcome) <= 2048),
  finished_at timestamptz,
  constraint schedules_fired check ((fired_at is null) = (outcome is null) and (fired_at is null) = (finished_at is null))
);
comment on table headwater.schedules is
  'One row for each schedule that a worker has ever seen. It moves under the lease that stands in projections under the '
  'name schedules; the row of a schedule that is no longer declared stays, and goes on when it is declared again.';
comment on column headwater.schedules.begun_at is 'When a worker first saw it: what was due before is not fired.';
comment on column headwater.schedules.fired_at is 'The last due moment that was fired, not the time at which it was.';
comment on column headwater.schedules.outcome is
  'What it came to: accepted, the code of a refusal, or what the schedule''s code raised, and where.';
comment on column headwater.schedules.finished_at is 'When the outcome was known.';
