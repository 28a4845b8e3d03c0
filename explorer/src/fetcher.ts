import { createGraphiQLFetcher, type Fetcher, type FetcherOpts, type FetcherParams } from '@graphiql/toolkit'
import { type DocumentNode, Kind, parse } from 'graphql'

/** Returns a fetcher for the address of this page: HTTP for queries and mutations, graphql-transport-ws for subscriptions. */
export function pageFetcher(page: Location): Fetcher {
  const scheme = page.protocol === 'https:' ? 'wss:' : 'ws:'
  const fetcher = createGraphiQLFetcher({
    url: page.pathname,
    // With an address instead of a client, the toolkit opens a socket for each subscription, and sends the headers of the
    // subscription's tab as connectionParams. A shared client would keep sending the headers of the first tab.
    subscriptionUrl: `${scheme}//${page.host}${page.pathname}`,
    enableIncrementalDelivery: false,
  })
  return (params, options) => fetcher(...asWritten(params, options))
}

/**
 * Takes the name and the document of an operation from its text. GraphiQL 5.4 updates both 100 ms after the last change of
 * the editor. An operation that is run sooner, for instance right after a click on its tab, would be sent with the name of
 * the previous operation, and over that operation's transport.
 */
function asWritten(params: FetcherParams, options: FetcherOpts = {}): [FetcherParams, FetcherOpts] {
  const document = parsed(params.query)
  if (!document) return [params, options] // the server reports the syntax error
  const names = document.definitions.flatMap((it) => (it.kind === Kind.OPERATION_DEFINITION ? [it.name?.value] : []))
  const operationName = params.operationName && names.includes(params.operationName) ? params.operationName : names[0]
  return [{ ...params, operationName: operationName ?? null }, { ...options, documentAST: document }]
}

function parsed(query: string): DocumentNode | undefined {
  try {
    return parse(query)
  } catch {
    return undefined
  }
}
