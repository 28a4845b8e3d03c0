-- What failed is not gone on with; what is only held up is tried again by itself. Two columns, so that nobody takes one for
-- the other.
alter table headwater.projections add column hindrance text;
comment on column headwater.projections.failure is
  'Why it is not built: nobody goes on with it, and what is begun in its place starts from nothing.';
comment on column headwater.projections.hindrance is
  'What is in the way of its swap, which is tried again by itself.';
