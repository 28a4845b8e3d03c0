import { createGraphiQLFetcher, type Fetcher, type FetcherOpts, type FetcherParams } from '@graphiql/toolkit'
import { type DocumentNode, Kind, parse } from 'graphql'

/** Talks to the address that served this page: HTTP for queries and mutations, graphql-transport-ws for subscriptions. */
export function pageFetcher(page: Location): Fetcher {
  const scheme = page.protocol === 'https:' ? 'wss:' : 'ws:'
  const fetcher = createGraphiQLFetcher({
    url: page.pathname,
    // Given an address rather than a client, the toolkit opens one socket a subscription, when it is run, with the headers
    // of its own tab as connectionParams. A shared client would go on speaking with the headers of whichever tab came first.
    subscriptionUrl: `${scheme}//${page.host}${page.pathname}`,
    enableIncrementalDelivery: false,
  })
  return (params, options) => fetcher(...asWritten(params, options))
}

/**
 * GraphiQL 5.4 reads the editor 100 ms after the last change. Run sooner, as by a click on a tab and another on the button,
 * an operation would go out under the name, and to the transport, of the one before.
 */
function asWritten(params: FetcherParams, options: FetcherOpts = {}): [FetcherParams, FetcherOpts] {
  const document = parsed(params.query)
  if (!document) return [params, options] // the server says what is wrong with it
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
