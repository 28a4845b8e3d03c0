import type { GraphiQLProps } from 'graphiql'

export type Tab = NonNullable<GraphiQLProps['defaultTabs']>[number]

type Example = { name: string; query: string; variables: string | null }

/** Returns a tab for each example, or one tab with the reason why there is none. GraphiQL names a tab after its operation. */
export async function exampleTabs(address: string): Promise<Tab[]> {
  try {
    const answer = await fetch(address)
    if (!answer.ok) throw new Error(`${address} answered ${answer.status}`)
    const tabs = ((await answer.json()) as Example[]).map(tab)
    return tabs.length > 0 ? tabs : [comment('Write an operation here and run it with Ctrl-Enter.')]
  } catch (error) {
    return [comment(`The examples could not be loaded: ${error instanceof Error ? error.message : error}`)]
  }
}

function tab({ name, query, variables }: Example): Tab {
  return { query: `# ${name}\n${query}`, variables }
}

function comment(text: string): Tab {
  return { query: `# ${text}\n` }
}
